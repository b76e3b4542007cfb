"""Learners side by side: what two gain, what a straggler costs, what the simulation says of it.

Trainings are those of `fedspeech train`, learners on Ray with one thread each, on the synthetic
corpus without augmentation. Everybody takes turns in each repetition; a pace is that of all epochs
of a training but the first, in which learners start. Beside each of these the checkpoint of the one
before is written.
"""

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, ratio, say, spread
from fedspeech import cluster, corpus, machine
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.progress import stage
from fedspeech.run_folder import cache_folder

if TYPE_CHECKING:
    from fedspeech.training.parallel.computing import Measured

TWO = "Two learners of one thread beside one"
STRAGGLER = "One learner of four is slowed ten times"
SIMULATED = "Seconds of an epoch: simulated beside measured"
LIMIT = 7200.0
PANELS = (
    Panel(TWO, "utterances a batch", "/ one learner's", ("way",)),
    Panel(STRAGGLER, "way", "kept", ("model",)),
)
WAYS = ("allreduce", "ad-psgd")


class Contestant(NamedTuple):
    """How so many learners train."""

    method: str
    learners: int
    hook: str = "none"


CONTESTANTS = {
    "one learner": Contestant("allreduce", 1),
    "allreduce": Contestant("allreduce", 2),
    "allreduce fp16": Contestant("allreduce", 2, "fp16"),
    "allreduce powersgd": Contestant("allreduce", 2, "powersgd"),
    "ad-psgd": Contestant("ad-psgd", 2),
}
SLOWED = 10.0
HELD_LEARNERS = 4
COMPUTING = {
    "allreduce": 1 / SLOWED,
    "ad-psgd": (HELD_LEARNERS - 1 + 1 / SLOWED) / HELD_LEARNERS,
}
"""What is kept with the straggler where nothing but computing takes time: the pace of the slowest,
or that of all without what the straggler has lost. Talking is not slowed."""


@dataclass(frozen=True)
class Plan:
    """A large model that two learners train, and a small one that four do, one of them slowed.

    `two` says how many utterances a batch of each of the two learners has, and how many of these
    batches an epoch has; talking takes as long whatever they hear in between. `batch_size` and
    `held` are the same of the four. Of these `ad-psgd` has `longer` times as many epochs: where in
    a part its straggler is as the last one ends is then little beside the whole.
    """

    large: str
    small: str
    two: tuple[tuple[int, int], ...]
    batch_size: int
    held: int
    epochs: int
    longer: int
    repeats: int


FULL = Plan(
    large="tdnn",
    small="tdnn-tiny",
    two=((16, 48), (64, 36), (128, 18)),
    batch_size=16,
    held=64,
    epochs=3,
    longer=4,
    repeats=3,
)
QUICK = Plan(
    large="tdnn-tiny",
    small="tdnn-tiny",
    two=((8, 6), (16, 6)),
    batch_size=8,
    held=12,
    epochs=2,
    longer=2,
    repeats=1,
)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """The rows of two learners, of their simulation, and of four with a straggler."""
    for size, batches in plan.two:
        with _bench(_settings(setting, plan, plan.large, size, batches), setting, 2) as bench:
            yield from _two(bench, plan, size)
    held = _settings(setting, plan, plan.small, plan.batch_size, plan.held)
    with _bench(held, setting, HELD_LEARNERS) as bench:
        yield from _straggler(bench, plan)


class _Bench:
    """Learners that wait for trainings of one model."""

    def __init__(self, setting: Setting, settings: DataParallelConfig, learners: int) -> None:
        from fedspeech.training.parallel.crew import Crew
        from fedspeech.training.parallel.task import Task

        self.settings = settings
        self.folder, self._numbers = setting.folder, itertools.count()
        (self.folder / "cells").mkdir(exist_ok=True)
        self.task = Task(settings, corpus.load(settings.corpus), cache_folder() / "features")
        self.crew = Crew(settings, learners)

    def epoch(self, method: str, learners: int, longer: int = 1, **parallel: Any) -> "Epoch":
        """The mean of an epoch of one training, which has `longer` times its epochs."""
        from fedspeech.training.parallel import cell
        from fedspeech.training.parallel.learner import Training

        table = self.settings.model_dump(mode="json")
        table["parallel"] |= {"method": method, "learners": learners, **parallel}
        table["training"]["epochs"] *= longer
        settings = DataParallelConfig.model_validate(table)
        name = f"{method}-{next(self._numbers)}"
        training = Training(settings, settings.seed, self.folder, name)
        with stage(settings.training.epochs) as shown:
            shown.start(name)
            epochs = cell.train(self.crew, self.task, training, shown).epochs[1:]
        cell.forget(training)
        seconds, heard = (sum(epoch[key] for epoch in epochs) for key in ("seconds", "utterances"))
        return Epoch(seconds / len(epochs), heard / seconds)


class Epoch(NamedTuple):
    """How long it takes, and utterances per second."""

    seconds: float
    pace: float


@contextmanager
def _bench(settings: DataParallelConfig, setting: Setting, learners: int) -> Iterator[_Bench]:
    # Before Ray is imported.
    cluster.prepare(None)
    bench = _Bench(setting, settings, learners)
    try:
        yield bench
    finally:
        bench.crew.close()


def _settings(
    setting: Setting, plan: Plan, model: str, batch_size: int, batches: int
) -> DataParallelConfig:
    speakers = 9
    # Whoever trains trains with all of it, what is called test there as well.
    utterances = -(-batches * batch_size // (speakers - 1)) - 1
    synthetic = {"speakers": speakers, "train_utterances": utterances, "test_utterances": 1}
    return DataParallelConfig.model_validate(
        {
            "seeds": [setting.seed],
            "corpus": {"recipe": "synthetic", "synthetic": synthetic | {"seed": setting.seed}},
            "test": {"speakers": 1},
            "model": {"name": model},
            "training": {
                **{"epochs": plan.epochs, "batch_size": batch_size, "clean": 1.0},
                "augmentation": {"speeds": [1.0]},
            },
        }
    )


def _two(bench: _Bench, plan: Plan, size: int) -> Iterator[Row]:
    """What is measured, and beside it what is simulated.

    The simulation is fed with learners that know nothing of each other: with one alone, and with as
    many side by side as learn together.
    """
    from fedspeech.training.parallel.computing import (
        Batch,
        Measured,
        piece_of,
        places,
        side_by_side,
        written,
    )
    from fedspeech.training.parallel.loopback import measured_link

    found: dict[str, list[Epoch]] = {name: [] for name in CONTESTANTS}
    beside: dict[int, list[Batch]] = {n: [] for n in (1, min(2, places(bench.settings)))}
    for repeat in range(plan.repeats):
        say(f"two learners, batches of {size}, repetition {repeat}")
        for count, batches in beside.items():
            batches += side_by_side(bench.settings, [size], count)[size]
        for name, (method, learners, hook) in CONTESTANTS.items():
            found[name].append(bench.epoch(method, learners, hook=hook))
    kept = written(bench.settings, bench.folder)
    link = measured_link(piece_of(bench.task, bench.settings, beside[1]))
    fed = Measured({size: beside}, link, kept)
    computing = fed.together(size, max(beside))
    one = [epoch.pace for epoch in found["one learner"]]
    for name, epochs in found.items():
        paces = [epoch.pace for epoch in epochs]
        yield {
            "table": TWO,
            "model": plan.large,
            "utterances a batch": size,
            "way": name,
            "learners": CONTESTANTS[name].learners,
            "utterances/s": spread(paces),
            "/ one learner's": ratio(paces, one),
            "if all is computing": computing[min(CONTESTANTS[name].learners, len(computing)) - 1],
        }
    for name, epochs in found.items():
        if CONTESTANTS[name].hook != "none":
            continue
        simulated = _simulated(bench, CONTESTANTS[name], fed)
        measured = [epoch.seconds for epoch in epochs]
        yield {
            "table": SIMULATED,
            "model": plan.large,
            "utterances a batch": size,
            "way": name,
            "learners": CONTESTANTS[name].learners,
            "measured, s": spread(measured),
            "simulated, s": simulated,
            "simulated / measured": simulated / statistics.median(measured),
        }


def _simulated(bench: _Bench, contestant: Contestant, fed: "Measured") -> float:
    from fedspeech import models
    from fedspeech.training.parallel.computing import places, statistics_of
    from fedspeech.training.parallel.predicted import ALIKE, FLOAT_BYTES
    from fedspeech.training.parallel.simulated import Case, Network, predict

    model = bench.task.model(bench.settings.seed)
    training, method = bench.settings.training, contestant.method
    batches = fed.alone(training.batch_size)
    case = Case(
        method=method if method == "allreduce" else f"{method} ring",
        learners=contestant.learners,
        seconds=[batch.seconds for batch in batches],
        frames=[batch.frames for batch in batches],
        batches=len(bench.task.taught) / training.batch_size,
        size=FLOAT_BYTES * models.parameters(model),
        network=Network(fed.here),
        statistics=statistics_of(model),
        together=fed.together(training.batch_size, places(bench.settings)),
        checkpoint=fed.checkpoint,
        one_writes=method in ALIKE,
        epochs=training.epochs,
    )
    return predict(case).seconds


def _straggler(bench: _Bench, plan: Plan) -> Iterator[Row]:
    """Every learner takes at most half of its share of the processors: one that waits lends none.

    So what the others compute takes as long whether it waits or not.
    """
    held = min(1.0, machine.cores() / HELD_LEARNERS / 2)
    slowed = [*[1.0] * (HELD_LEARNERS - 1), SLOWED]
    found: dict[tuple[str, bool], list[Epoch]] = {}
    for repeat, name, slow in itertools.product(range(plan.repeats), WAYS, (False, True)):
        say(f"{name}, a straggler: {slow}, repetition {repeat}")
        more = {"processor": held, "slowed": slowed if slow else []}
        longer = plan.longer if name == "ad-psgd" else 1
        epoch = bench.epoch(name, HELD_LEARNERS, longer, **more)
        found.setdefault((name, slow), []).append(epoch)
    for name in WAYS:
        before, after = ([epoch.pace for epoch in found[name, slow]] for slow in (False, True))
        yield {
            "table": STRAGGLER,
            "model": plan.small,
            "way": name,
            "learners": HELD_LEARNERS,
            "of a processor": held,
            "utterances/s": spread(before),
            "with straggler": spread(after),
            "kept": ratio(after, before),
            "if all is computing": COMPUTING[name],
        }
