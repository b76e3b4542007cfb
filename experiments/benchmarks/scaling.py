"""How fine-tuning time grows with speakers at fixed workers, and with workers at fixed speakers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import CORES, ours
from experiments.benchmarks.contestants.ours import Engine
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Child, Failed, Row, Setting, say, spread
from experiments.benchmarks.workload import Job, Workload

SPEAKERS, WORKERS = "Fine-tuning time against speakers", "Fine-tuning time against workers"
LIMIT = 900.0
ANSWER_LIMIT = 300.0
PANELS = (
    Panel(SPEAKERS, "speakers", "seconds", ("workers",)),
    Panel(WORKERS, "workers", "seconds", ("speakers",)),
)


@dataclass(frozen=True)
class Plan:
    """A job for one speaker, numbers of speakers at `CORES` workers, workers at one of them."""

    job: Job
    speakers: tuple[int, ...]
    workers: tuple[int, ...]
    at: int
    repeats: int
    utterances: int = 48


WORKER_COUNTS = tuple(sorted({1, 2, CORES, 2 * CORES}))
FULL = Plan(Job("0.1M", 1, 12, 0, "fp32"), (5, 10, 20, 40), WORKER_COUNTS, 10, 3)
QUICK = Plan(Job("0.1M", 1, 1, 0, "fp32"), (5, 10, 20), (1, 2), 10, 1)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each number of speakers, then for each number of workers."""
    speech = workload.speak(max(plan.speakers), plan.utterances, setting.seed)
    held = workload.prepare(setting.folder / "scaling", speech, setting.seed, [plan.job.size])
    for table, workers, numbers in (
        (SPEAKERS, CORES, plan.speakers),
        *((WORKERS, workers, (plan.at,)) for workers in plan.workers),
    ):
        try:
            yield from _measure(setting, plan, held, table, workers, numbers)
        except Failed as reason:
            yield {"table": table, "workers": workers, "failed": str(reason)}


def _measure(
    setting: Setting,
    plan: Plan,
    held: Workload,
    table: str,
    workers: int,
    numbers: tuple[int, ...],
) -> Iterator[Row]:
    name = f"{len(numbers)}-sizes-{workers}-workers"
    own = held.copy(setting.folder / name)
    child = Child(ours.serve, own, Engine(workers), log=setting.folder / "logs" / f"{name}.log")
    child.receive(ANSWER_LIMIT)
    start_up, seeds = child.age, itertools.count(1)
    child.ask(
        plan.job._replace(speakers=min(workers, max(numbers)), epochs=1, seed=0), ANSWER_LIMIT
    )
    for number in numbers:
        say(f"{workers} workers, {number} speakers")
        jobs = [plan.job._replace(speakers=number, seed=next(seeds)) for _ in range(plan.repeats)]
        seconds = [child.ask(job, ANSWER_LIMIT) for job in jobs]
        yield {
            "table": table,
            "workers": workers,
            "speakers": number,
            "seconds": spread(seconds),
            "seconds per speaker": spread([each / number for each in seconds]),
            "start-up, s": start_up,
        }
    child.close()
