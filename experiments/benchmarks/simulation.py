"""The simulation of data-parallel methods, beside two learners that train by them, and one."""

from collections.abc import Iterator
from typing import NamedTuple, get_args

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting
from experiments.benchmarks.learners import in_turns, learners, settings_of, simulated
from fedspeech.config.comparison import Way
from fedspeech.training.parallel.comparison import of_way

SIMULATED = "Seconds of an epoch: simulated beside measured"
LIMIT = 7200.0
PANELS = (Panel(SIMULATED, "way", "simulated / measured", ("model",)),)
REPEATS = 3
EVERY: tuple[Way, ...] = get_args(Way)


class Plan(NamedTuple):
    """What is trained, in batches of so many utterances, of which an epoch has so many."""

    model: str
    batch_size: int
    batches: int
    epochs: int
    ways: tuple[Way, ...]


FULL = (
    # Whose learners spend much of their time talking.
    Plan("tdnn-tiny", batch_size=16, batches=240, epochs=4, ways=EVERY),
    Plan("tdnn", batch_size=64, batches=36, epochs=3, ways=("allreduce", "ad-psgd ring")),
)
QUICK = (
    Plan("tdnn-tiny", batch_size=8, batches=6, epochs=2, ways=EVERY),
    Plan("tdnn-tiny", batch_size=16, batches=6, epochs=2, ways=("allreduce",)),
)


def rows(setting: Setting, plans: tuple[Plan, ...]) -> Iterator[Row]:
    """A row for each way and for one learner, of each model."""
    for plan in plans:
        settings = settings_of(setting, plan.model, plan.batch_size, plan.batches, plan.epochs)
        with learners(settings, setting, 2) as bench:
            ways = {way: bench.row(learners=2, **of_way(way)) for way in plan.ways}
            every = {"one learner": bench.row(method="allreduce", learners=1), **ways}
            turns = in_turns(bench, every, REPEATS)
            yield from simulated(bench, turns, SIMULATED)
