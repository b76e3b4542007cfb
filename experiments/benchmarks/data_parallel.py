"""What two learners of a large model gain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, ratio, spread
from experiments.benchmarks.learners import in_turns, learners, settings_of

TWO = "Two learners of one thread beside one"
LIMIT = 7200.0
PANELS = (Panel(TWO, "utterances a batch", "/ one learner's", ("way",)),)
CONTESTANTS: dict[str, dict[str, Any]] = {
    "one learner": {"method": "allreduce", "learners": 1},
    "allreduce": {"method": "allreduce"},
    "allreduce fp16": {"method": "allreduce", "hook": "fp16"},
    "allreduce powersgd": {"method": "allreduce", "hook": "powersgd"},
    "ad-psgd": {"method": "ad-psgd"},
}
"""What `[parallel]` says of each; of two learners where it does not say how many."""


@dataclass(frozen=True)
class Plan:
    """`sizes` says how many utterances a batch of each learner has, and how many of these batches
    an epoch has; talking takes as long whatever learners hear in between.
    """

    model: str
    sizes: tuple[tuple[int, int], ...]
    epochs: int
    repeats: int


FULL = Plan(model="tdnn", sizes=((16, 48), (64, 36)), epochs=3, repeats=3)
QUICK = Plan(model="tdnn-tiny", sizes=((8, 6), (16, 6)), epochs=2, repeats=1)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """Each of them with each size, in turns."""
    from fedspeech.training.parallel.computing import mean_seconds

    for size, batches in plan.sizes:
        settings = settings_of(setting, plan.model, size, batches, plan.epochs)
        with learners(settings, setting, 2) as bench:
            every = {n: bench.row(**{"learners": 2} | told) for n, told in CONTESTANTS.items()}
            turns = in_turns(bench, every, plan.repeats)
        seconds = {count: mean_seconds(each) for count, each in turns.beside.items()}
        one = [epoch.pace for epoch in turns.epochs["one learner"]]
        for name, epochs in turns.epochs.items():
            paces, count = [epoch.pace for epoch in epochs], every[name].parallel.learners
            places = min(count, max(seconds))
            yield {
                "table": TWO,
                "model": plan.model,
                "utterances a batch": size,
                "way": name,
                "learners": count,
                "utterances/s": spread(paces),
                "/ one learner's": ratio(paces, one),
                "if all is computing": places * seconds[1] / seconds[places],
            }
