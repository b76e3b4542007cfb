"""The simulation of every method, beside two learners that train by it, and beside one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting
from experiments.benchmarks.learners import in_turns, learners, settings_of, simulated
from fedspeech.config.comparison import Way
from fedspeech.training.parallel.comparison import of_way

EPOCHS = "Seconds of an epoch with each method: simulated beside measured"
LIMIT = 3600.0
PANELS = (Panel(EPOCHS, "way", "simulated / measured", ("model",)),)


@dataclass(frozen=True)
class Plan:
    """A small model, whose learners spend much of their time talking; `batches` are an epoch's."""

    model: str
    batch_size: int
    batches: int
    epochs: int
    repeats: int


FULL = Plan(model="tdnn-tiny", batch_size=16, batches=240, epochs=4, repeats=3)
QUICK = Plan(model="tdnn-tiny", batch_size=8, batches=6, epochs=2, repeats=1)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each."""
    settings = settings_of(setting, plan.model, plan.batch_size, plan.batches, plan.epochs)
    with learners(settings, setting, 2) as bench:
        ways = {way: bench.row(learners=2, **of_way(way)) for way in get_args(Way)}
        every = {"one learner": bench.row(method="allreduce", learners=1), **ways}
        turns = in_turns(bench, every, plan.repeats)
        yield from simulated(bench, turns, every, EPOCHS)
