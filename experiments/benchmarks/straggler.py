"""What a straggler costs four learners."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, ratio, say, spread
from experiments.benchmarks.learners import Epoch, learners, settings_of
from fedspeech import machine

STRAGGLER = "One learner of four is slowed ten times"
LIMIT = 3600.0
PANELS = (Panel(STRAGGLER, "way", "kept", ("model",)),)
WAYS = ("allreduce", "ad-psgd")
SLOWED = 10.0
LEARNERS = 4
COMPUTING = {"allreduce": 1 / SLOWED, "ad-psgd": (LEARNERS - 1 + 1 / SLOWED) / LEARNERS}
"""What is kept with the straggler where nothing but computing takes time: the pace of the slowest,
or that of all without what the straggler has lost. Talking is not slowed."""


@dataclass(frozen=True)
class Plan:
    """A small model; `batches` of `batch_size` utterances are an epoch's, for all learners.

    `ad-psgd` has `longer` times as many epochs: where in a part its straggler is as the last one
    ends is then little beside the whole.
    """

    model: str
    batch_size: int
    batches: int
    epochs: int
    longer: int
    repeats: int


FULL = Plan(model="tdnn-tiny", batch_size=16, batches=64, epochs=3, longer=4, repeats=3)
QUICK = Plan(model="tdnn-tiny", batch_size=8, batches=12, epochs=2, longer=2, repeats=1)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """Each way without the straggler and with it, in turns.

    Every learner takes at most half of its share of the processors: one that waits lends none. So
    what the others compute takes as long whether it waits or not.
    """
    held = min(1.0, machine.cores() / LEARNERS / 2)
    slowed = [*[1.0] * (LEARNERS - 1), SLOWED]
    found: dict[tuple[str, bool], list[Epoch]] = {}
    settings = settings_of(setting, plan.model, plan.batch_size, plan.batches, plan.epochs)
    with learners(settings, setting, LEARNERS) as bench:
        for repeat, name, slow in itertools.product(range(plan.repeats), WAYS, (False, True)):
            say(f"{name}, a straggler: {slow}, repetition {repeat}")
            told = {"processor": held, "slowed": slowed if slow else []}
            longer = plan.longer if name == "ad-psgd" else 1
            row = bench.row(longer, method=name, learners=LEARNERS, **told)
            found.setdefault((name, slow), []).append(bench.epoch(row))
    for name in WAYS:
        before, after = ([epoch.pace for epoch in found[name, slow]] for slow in (False, True))
        yield {
            "table": STRAGGLER,
            "model": plan.model,
            "way": name,
            "learners": LEARNERS,
            "of a processor": held,
            "utterances/s": spread(before),
            "with straggler": spread(after),
            "kept": ratio(after, before),
            "if all is computing": COMPUTING[name],
        }
