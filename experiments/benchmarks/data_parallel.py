"""Learners side by side: what two gain, what a straggler costs, what the simulation says of it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, ratio, say, spread
from experiments.benchmarks.learners import (
    Epoch,
    Learners,
    in_turns,
    learners,
    settings_of,
    simulated,
)
from fedspeech import machine

TWO = "Two learners of one thread beside one"
STRAGGLER = "One learner of four is slowed ten times"
SIMULATED = "Seconds of an epoch: simulated beside measured"
LIMIT = 7200.0
PANELS = (
    Panel(TWO, "utterances a batch", "/ one learner's", ("way",)),
    Panel(STRAGGLER, "way", "kept", ("model",)),
)
WAYS = ("allreduce", "ad-psgd")
CONTESTANTS: dict[str, dict[str, Any]] = {
    "one learner": {"method": "allreduce", "learners": 1},
    "allreduce": {"method": "allreduce"},
    "allreduce fp16": {"method": "allreduce", "hook": "fp16"},
    "allreduce powersgd": {"method": "allreduce", "hook": "powersgd"},
    "ad-psgd": {"method": "ad-psgd"},
}
"""What `[parallel]` says of each; of two learners where it does not say how many."""
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
    two=((16, 48), (64, 36)),
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
        settings = settings_of(setting, plan.large, size, batches, plan.epochs)
        with learners(settings, setting, 2) as bench:
            yield from _two(bench, plan)
    settings = settings_of(setting, plan.small, plan.batch_size, plan.held, plan.epochs)
    with learners(settings, setting, HELD_LEARNERS) as bench:
        yield from _straggler(bench, plan)


def _two(bench: Learners, plan: Plan) -> Iterator[Row]:
    """What is measured, and beside it what is simulated."""
    every = {name: bench.row(**{"learners": 2} | told) for name, told in CONTESTANTS.items()}
    turns = in_turns(bench, every, plan.repeats)
    size = bench.settings.training.batch_size
    computing = turns.fed.together(size, max(turns.fed.batches[size]))
    one = [epoch.pace for epoch in turns.epochs["one learner"]]
    for name, epochs in turns.epochs.items():
        paces, count = [epoch.pace for epoch in epochs], every[name].parallel.learners
        yield {
            "table": TWO,
            "model": plan.large,
            "utterances a batch": size,
            "way": name,
            "learners": count,
            "utterances/s": spread(paces),
            "/ one learner's": ratio(paces, one),
            "if all is computing": computing[min(count, len(computing)) - 1],
        }
    unhooked = [name for name, row in every.items() if row.parallel.hook == "none"]
    yield from simulated(bench, turns, unhooked, SIMULATED)


def _straggler(bench: Learners, plan: Plan) -> Iterator[Row]:
    """Every learner takes at most half of its share of the processors: one that waits lends none.

    So what the others compute takes as long whether it waits or not.
    """
    held = min(1.0, machine.cores() / HELD_LEARNERS / 2)
    slowed = [*[1.0] * (HELD_LEARNERS - 1), SLOWED]
    found: dict[tuple[str, bool], list[Epoch]] = {}
    for repeat, name, slow in itertools.product(range(plan.repeats), WAYS, (False, True)):
        say(f"{name}, a straggler: {slow}, repetition {repeat}")
        told = {"processor": held, "slowed": slowed if slow else []}
        longer = plan.longer if name == "ad-psgd" else 1
        row = bench.row(longer, method=name, learners=HELD_LEARNERS, **told)
        found.setdefault((name, slow), []).append(bench.epoch(row))
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
