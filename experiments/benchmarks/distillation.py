"""What a training step with modules replaced costs, and how fast the student streams.

Steps are those of `fedspeech distill`, on noise: features, loss, gradient and optimizer. All rows
of a pair of models take turns in each repetition. A stream hears noise in chunks of a tenth of a
second on one core; the blank's bias is chosen so that the drawn model spells about as often as one
that was trained.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Channel, Child, Row, Setting, ratio, say, spread
from experiments.benchmarks.memory import memory
from fedspeech import models, seeding
from fedspeech.config.distillation import DistillationTraining, ModuleSettings, ReplacingSettings
from fedspeech.config.model import FeatureSettings
from fedspeech.corpus.cuts import SAMPLE_RATE
from fedspeech.decoding.streaming import FeatureStream, Stream
from fedspeech.decoding.transducer import Greedy
from fedspeech.features import Normalization, Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.models.rnnt import BLANK, RNNT
from fedspeech.training.course import Course
from fedspeech.training.distill.hybrid import Hybrid, inherit
from fedspeech.training.distill.loops import LatticeLoop, ReplacingLoop, alone
from fedspeech.training.distill.modules import cut
from fedspeech.training.loop import Loop
from fedspeech.units import Units

STEPS, STREAMS = "A training step with modules replaced", "Streaming on one core"
LIMIT = 1800.0
ANSWER_LIMIT = 600.0
PANELS = (
    Panel(STEPS, "row", "/ the teacher's", ("models",)),
    Panel(STREAMS, "model", "real-time factor", ("chunk, s",)),
)
FEATURES = FeatureSettings(kind="log-mel", dimension=64)
NAME = (0, 0, "", "benchmark")
RATE = 0.5
"""The probability of the student's modules; the rest are the teacher's, which are larger."""
UNITS_PER_SECOND = 4
BIAS, HALVINGS = 200.0, 24
"""Of the blank: the largest that is tried, and how often."""
CHUNK_SECONDS = 0.1


class Pair(NamedTuple):
    """Teacher and student by name, with layers in each module; units, and what a minibatch has."""

    teacher: str
    student: str
    encoder: tuple[tuple[int, ...], tuple[int, ...]]
    units: int
    batch: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Pairs; models that stream for so many seconds; minibatches in a repetition."""

    pairs: tuple[Pair, ...]
    streams: tuple[str, ...]
    seconds: float = 20.0
    minibatches: int = 4
    repeats: int = 5


TINY = Pair("rnnt-tiny-deep", "rnnt-tiny-flat", ((3, 2), (1, 1)), 30, 16, 2.0)
LARGE = Pair("rnnt-teacher-41m", "rnnt-student-22m", ((1, 3), (1, 1)), 1024, 8, 8.0)
FULL = Plan((TINY, LARGE), ("rnnt-tiny", "rnnt-student-22m"))
QUICK = Plan((TINY,), ("rnnt-tiny",), seconds=4.0, minibatches=2, repeats=2)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each way to train each pair, then for each model that streams."""
    for pair in plan.pairs:
        yield from _steps(plan, pair)
    for name in plan.streams:
        say(f"streaming: {name}")
        log = setting.folder / "logs" / f"stream-{name}.log"
        child = Child(stream, name, plan, log=log)
        row = child.receive(ANSWER_LIMIT)
        row["resident, MiB"] = memory(child.pid)["VmRSS"]
        child.close()
        yield row


def _steps(plan: Plan, pair: Pair) -> Iterator[Row]:
    loops = {name: make(plan, pair) for name, make in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(plan.repeats + 1):
        say(f"steps: {pair.teacher}, repetition {repeat}")
        for name, loop in loops.items():
            started = time.perf_counter()
            loop.epoch(repeat)
            if repeat:  # the first one warms up
                seconds[name].append((time.perf_counter() - started) / plan.minibatches)
    for name, values in seconds.items():
        yield {
            "table": STEPS,
            "models": f"{pair.teacher}, {pair.student}",
            "row": name,
            "ms": spread([1000 * value for value in values]),
            "/ the teacher's": ratio(values, seconds["teacher"]),
        }


def course(plan: Plan, pair: Pair) -> Course:
    """Noise, and texts of random units; a repetition is one of many epochs: rates stay the same."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = ["<blank>", *(f"u{number}" for number in range(1, pair.units))]
    size = FEATURES.dimension
    plain = Normalization(torch.zeros(size), torch.ones(size))
    utterances = []
    for number in range(plan.minibatches * pair.batch):
        frames = torch.randn(int(100 * pair.seconds), size, generator=draw)
        said = torch.randint(1, pair.units, (int(UNITS_PER_SECOND * pair.seconds),), generator=draw)
        text = " ".join(vocabulary[unit] for unit in said.tolist())
        utterances.append(Utterance(f"{number}", "s", text, {1.0: frames}, plain))
    return Course(training(pair), FEATURES, Units("words", vocabulary), utterances, NAME)


def training(pair: Pair) -> DistillationTraining:
    """The settings of a pair's steps."""
    return DistillationTraining(epochs=1000, batch_size=pair.batch, clean=1.0)


def model(name: str, units: int) -> RNNT:
    """A model of this name, drawn."""
    with seeding.scoped(*NAME):
        found = models.build(name, FEATURES.dimension, units)
    assert isinstance(found, RNNT)
    return found


def _replacing(plan: Plan, pair: Pair, strategy: int) -> Loop:
    teacher, student = model(pair.teacher, pair.units), model(pair.student, pair.units)
    counts = dict(zip(("teacher", "student"), pair.encoder, strict=True))
    modules = cut(teacher, student, ModuleSettings.model_validate({"encoder": counts}))
    inherit(teacher, student)
    teacher.requires_grad_(strategy == 1)
    constant = ReplacingSettings(schedule="constant", rate=RATE)
    hybrid = Hybrid(teacher, student, modules)
    return ReplacingLoop(hybrid, course(plan, pair), training(pair), constant, NAME)


def _lattice(plan: Plan, pair: Pair) -> Loop:
    teacher, student = model(pair.teacher, pair.units), model(pair.student, pair.units)
    return LatticeLoop(student, teacher, course(plan, pair), training(pair), 1e-3)


WAYS: dict[str, Callable[[Plan, Pair], Loop]] = {
    "teacher": lambda plan, pair: alone(
        model(pair.teacher, pair.units), course(plan, pair), training(pair)
    ),
    "student": lambda plan, pair: alone(
        model(pair.student, pair.units), course(plan, pair), training(pair)
    ),
    "kd": _lattice,
    "strategy 2": lambda plan, pair: _replacing(plan, pair, 2),
    "strategy 1": lambda plan, pair: _replacing(plan, pair, 1),
}


def stream(channel: Channel, name: str, plan: Plan) -> None:
    """Answer with the row of one model, and wait."""
    torch.set_num_threads(1)
    about = ModelDescription(name, FEATURES, Units("words", [f"u{n}" for n in range(1024)]))
    listener = model(name, len(about.units))
    plain = Normalization(torch.full((64,), 8.0), torch.full((64,), 4.0))
    draw = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(int(plan.seconds * SAMPLE_RATE), generator=draw)
    with torch.no_grad():
        listener.output.weight.mul_(20)  # drawn weights say all units alike,
        listener.predicted.weight.zero_()  # and whatever was said before, once they say one
    _let_through(listener, FeatureStream(FEATURES, plain).accept(wave), plan.seconds)
    factors, spelled = [], 0
    for _ in range(plan.repeats):
        heard = Stream(listener, about, plain)
        started = time.perf_counter()
        words = [heard.accept(part) for part in wave.split(int(CHUNK_SECONDS * SAMPLE_RATE))]
        spelled = sum(map(len, [*words, heard.finish()]))
        factors.append((time.perf_counter() - started) / plan.seconds)
    channel.answer(
        {
            "table": STREAMS,
            "model": name,
            "parameters": models.parameters(listener),
            "chunk, s": CHUNK_SECONDS,
            "units a second": spelled / plan.seconds,
            "real-time factor": spread(factors),
        }
    )
    for _ in channel:  # its memory is looked at meanwhile
        pass


@torch.inference_mode()
def _let_through(listener: RNNT, frames: torch.Tensor, seconds: float) -> None:
    """Give the blank the bias with which greedy search spells nearly so many units in a second."""
    encoded, _ = listener.encode(frames[None])
    low, high = -BIAS, BIAS
    for _ in range(HALVINGS):
        listener.output.bias[BLANK] = middle = (low + high) / 2
        search = Greedy(listener, 1)
        search.accept(encoded, torch.tensor([encoded.shape[1]]))
        if len(search.spelled[0]) > UNITS_PER_SECOND * seconds:
            low = middle
        else:
            high = middle
    listener.output.bias[BLANK] = high
