"""How small diffs are and how fast their container is, between two models of a real fine-tuning.

G is trained on three speakers of the synthetic corpus, from drawn weights, and fine-tuned on a
fourth; the largest model only so little that neighbouring taps of its filters still change alike,
which general compressors see and a code of order 0 does not. Sizes are held against the bound and
against zstd and xz by `diff_size`, which reads neither our code nor our bytes. Speeds are those of
one core, in MB of the dense float32 model for each second: of the container alone, and of a file's
update with both of its hashes. Searching the diff that fits and fitting arrays are timed by
themselves.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np

from experiments.benchmarks import diff_size, workload
from experiments.benchmarks.contestants import plain
from experiments.benchmarks.diff_size import Stored
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, say, spread
from experiments.benchmarks.workload import Plain
from fedspeech import seeding, tensors
from fedspeech.diff import budget, methods, wire
from fedspeech.diff.apply import apply_file
from fedspeech.diff.budget import Made
from fedspeech.diff.compare import compare
from fedspeech.diff.contents import Form
from fedspeech.diff.values import Kind, values
from fedspeech.features import one_thread
from fedspeech.tensors import Tensors

Found = TypeVar("Found")
TABLE = "Diffs"
LIMIT = 2400.0
PANELS = (
    Panel(TABLE, "ratio", "/ the bound", ("model", "method", "values")),
    Panel(TABLE, "ratio", "encode, MB/s", ("model", "method", "values")),
    Panel(TABLE, "ratio", "decode, MB/s", ("model", "method", "values")),
)
SPEAKERS = 3
"""Whose speech trains G; the next one's is what it is fine-tuned on."""


class Training(NamedTuple):
    """A model, and epochs of G and of its fine-tuning."""

    size: str
    generic: int
    personal: int


@dataclass(frozen=True)
class Plan:
    """Trainings, utterances of a speaker; repetitions.

    Sparse diffs have budgets: so many times less than the model. Arrays of the hashed ones have so
    many times less cells than their matrices values.
    """

    trainings: tuple[Training, ...]
    utterances: int = 40
    ratios: tuple[int, ...] = (10, 20, 40, 100)
    hash_ratio: int = 10
    repeats: int = 5


FULL = Plan((Training("1M", 40, 20), Training("14M", 4, 12)))
QUICK = Plan((Training("1M", 4, 12),), 16, (10, 100), repeats=2)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each model, method, ratio and kind of values."""
    with one_thread():
        for training in plan.trainings:
            case = Case(setting, training, plan.utterances)
            for row in case.rows(plan):
                yield {"table": TABLE, "model": training.size, **row}


class Case:
    """Two generations of a model."""

    def __init__(self, setting: Setting, training: Training, utterances: int) -> None:
        self.old, self.new = generations(setting, training, utterances)
        self.full = tensors.size(self.new)
        self._path, self._next = setting.folder / "old", setting.folder / "new"
        tensors.write(self._path, self.old)

    def rows(self, plan: Plan) -> Iterator[Row]:
        """A row for each method, ratio and kind of values."""
        ways = [*((self.sparse, ratio) for ratio in plan.ratios), (self.hashed, plan.hash_ratio)]
        for (way, ratio), kind in product(ways, Kind):
            say(f"diffs: {way.__name__}, {ratio}x, {kind.name.lower()}")
            made, stored, seconds = way(ratio, kind)
            yield {
                "method": way.__name__,
                "ratio": ratio,
                "values": kind.name.lower(),
                **self.size_of(made, stored, kind),
                "search or fit, s": seconds,
                **self.speed_of(made, plan.repeats),
            }

    def sparse(self, ratio: int, kind: Kind) -> tuple[Made, list[Stored], float]:
        """The diff that fits a budget, what it sends, and how long the search took."""
        most = self.full // ratio
        seconds, made = timed(lambda: budget.make(self.old, self.new, most, kind=kind))
        return made, self._changes(made, kind), seconds

    def hashed(self, ratio: int, kind: Kind) -> tuple[Made, list[Stored], float]:
        """The same for arrays that are fitted by least squares, once for all kinds of values."""
        seconds, arrays, additive = self._arrays(ratio)
        way = partial(methods.Learned, arrays=arrays, seed=0, additive=additive)
        made = budget.make(self.old, self.new, None, way, kind)
        stored = [Stored(as_sent(array, kind), sparse=False) for array in arrays.values()]
        return made, [*stored, *self._changes(made, kind, arrays)], seconds

    @cache  # noqa: B019  (there is one case)
    def _arrays(self, ratio: int) -> tuple[float, dict[str, np.ndarray], list[str]]:
        """Seconds, the arrays, and the names of those that fell back to the additive form."""
        comparison = compare(self.old, self.new)
        way = methods.Hashed(comparison, seed=0)
        seconds, found = timed(lambda: way.segments(way.amount(1 / ratio), Kind.FP32, 0.0))
        pairs = [(p.name, s) for p, s in zip(comparison.parts, found, strict=True) if p.rows]
        arrays = {name: values(segment.codes, Kind.FP32, 1.0) for name, segment in pairs}
        return seconds, arrays, [name for name, s in pairs if s.form == Form.ADDITIVE]

    def _changes(self, made: Made, kind: Kind, but: Collection[str] = ()) -> list[Stored]:
        """What is sent of each tensor that is sent sparse, by the two models alone."""
        old, new = (
            {name: tensor.numpy() for name, tensor in model.items() if name not in but}
            for model in (self.old, made.result)
        )
        return list(diff_size.changes(old, new, kind.name.lower()))

    def size_of(self, made: Made, stored: list[Stored], kind: Kind) -> Row:
        """Bytes, what is lost, and how others would do."""
        size, name = len(made.data), kind.name.lower()
        others = {"zstd -19": "not installed", **diff_size.compressed(stored)}
        return {
            "bytes": size,
            "lost, %": 100 * made.lost,
            "/ the bound": size / diff_size.bound(stored, name),
            **{
                f"{other} / diff": bytes if isinstance(bytes, str) else bytes / size
                for other, bytes in others.items()
            },
        }

    def speed_of(self, made: Made, repeats: int) -> Row:
        """MB of the whole model in a second, after a repetition that warms up.

        Of the container by the processor's time, of a file by the clock: it waits for the disk.
        """
        diff = wire.decode(made.data)
        ways: dict[str, tuple[Callable[[], object], Callable[[], float]]] = {
            "encode, MB/s": (lambda: wire.encode(diff), time.process_time),
            "decode, MB/s": (lambda: wire.decode(made.data), time.process_time),
            "update of a file, MB/s": (
                lambda: apply_file(self._path, made.data, self._next),
                time.perf_counter,
            ),
        }
        return {
            name: spread([self.full / 1e6 / timed(*way)[0] for _ in range(repeats + 1)][1:])
            for name, way in ways.items()
        }


def generations(setting: Setting, training: Training, utterances: int) -> tuple[Tensors, Tensors]:
    """G, and G fine-tuned on the speech of somebody else."""
    size, *epochs = training
    say(f"diffs: training {size}")
    clients = workload.speak(SPEAKERS + 1, utterances, setting.seed)
    held = workload.prepare(setting.folder / size, clients, setting.seed, [size])
    *public, own = (held.plain(speaker) for speaker in range(SPEAKERS + 1))
    together = Plain(
        [rows for each in public for rows in each.features],
        [numbers for each in public for numbers in each.targets],
    )
    module = held.description(size).module(held.generic(size))
    states = []
    for speech, many in zip((together, own), epochs, strict=True):
        with seeding.scoped(setting.seed, len(states), "", "benchmark training"):
            plain.train(module, speech, many)
        states.append(tensors.state(module))
    return states[0], states[1]


def as_sent(array: np.ndarray, kind: Kind) -> np.ndarray:
    """An array's values as they are stored; int8 in the steps that its largest value needs."""
    step = float(np.float32(np.abs(array).max() / 127))
    return diff_size.as_stored(array, kind.name.lower(), step)


def timed(
    work: Callable[[], Found], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Found]:
    """Seconds, and what came of them."""
    started = clock()
    found = work()
    return clock() - started, found
