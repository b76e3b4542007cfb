"""Speakers fine-tuned per second, start-up shown by itself.

In each repetition all take turns, and nobody else's processes are there meanwhile: what an engine
does in the background is part of its own figures, and of nobody else's.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import CORES, FIELD, PLAIN, Contestant
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Child, Failed, Row, Setting, ratio, say, spread
from experiments.benchmarks.workload import Job, Workload

THROUGHPUT = "Speakers fine-tuned per second, start-up excluded"
LIMIT = 3600.0
ANSWER_LIMIT = 300.0
"""Seconds that one answer may take."""
PANELS = (Panel(THROUGHPUT, "contestant", "/ plain's speed", ("size",)),)


@dataclass(frozen=True)
class Plan:
    """Jobs without their seeds, how often each is repeated, and the utterances of each speaker."""

    jobs: tuple[Job, ...]
    repeats: int
    utterances: int = 48
    field: tuple[Contestant, ...] = FIELD


FULL = Plan(
    jobs=(Job("0.1M", 8, 12, 0), Job("1M", 4, 12, 0), Job("14M", 4, 2, 0)),
    repeats=3,
)
QUICK = Plan(jobs=(Job("0.1M", 4, 2, 0), Job("1M", 2, 1, 0)), repeats=1)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """Throughput of everybody at each size."""
    speakers = max(job.speakers for job in plan.jobs)
    speech = workload.speak(speakers, plan.utterances, setting.seed)
    held = workload.prepare(setting.folder / "workload", speech, setting.seed)
    yield from throughput(setting, plan, held)


class Host:
    """The process that serves some contestants; started when it is first asked."""

    def __init__(self, folder: Path, held: Workload) -> None:
        self._folder, self._held = folder, held
        self._child: Child | None = None
        self._numbers = itertools.count()
        self.start_up: list[float] = []
        """Seconds until it could be asked."""

    def ask(self, contestant: Contestant, job: Job) -> float:
        """The seconds that a job takes. Raises Failed; the next job meets a new process."""
        contestant.check()
        try:
            if self._child is None:
                self._start(contestant)
            assert self._child is not None
            return float(self._child.ask(job._replace(how=contestant.how), ANSWER_LIMIT))
        except Failed:
            self._child = None
            raise

    def _start(self, contestant: Contestant) -> None:
        own = self._held.copy(self._folder / "host" / str(next(self._numbers)))
        self._child = contestant.start(own, self._folder / "logs" / f"{contestant.name}.log")
        self._child.receive(ANSWER_LIMIT)
        self.start_up.append(self._child.age)

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        if self._child is not None:
            self._child.close()
        shutil.rmtree(self._folder / "host", ignore_errors=True)


def throughput(setting: Setting, plan: Plan, held: Workload) -> Iterator[Row]:
    """A row for each job and contestant."""
    seconds: dict[tuple[Contestant, Job], list[float]] = {
        (contestant, job): [] for job in plan.jobs for contestant in plan.field
    }
    start_up: dict[Contestant, list[float]] = {contestant: [] for contestant in plan.field}
    reasons: dict[tuple[Contestant, Job], str] = {}
    groups = [list(some) for _, some in itertools.groupby(plan.field, lambda one: one.process)]
    for turn in range(plan.repeats):
        for group in starting_at(groups, turn):
            host = Host(setting.folder, held)
            for contestant, job in itertools.product(group, plan.jobs):
                if (contestant, job) in reasons:
                    continue
                say(f"repetition {turn + 1}: {contestant.name}, {job.size}")
                try:
                    seconds[contestant, job].append(_warm(host, contestant, job, turn))
                except Failed as reason:
                    reasons[contestant, job] = str(reason)
            host.close()
            for contestant in group:
                start_up[contestant] += host.start_up
    for contestant, job in seconds:
        row: Row = {"table": THROUGHPUT, "size": job.size, "contestant": contestant.name}
        if (contestant, job) in reasons:
            yield {**row, "failed": reasons[contestant, job]}
            continue
        taken = seconds[contestant, job]
        yield {
            **row,
            "updates per speaker": held.updates(job),
            "speakers per second": spread([job.speakers / s for s in taken]),
            **against("plain's speed", seconds.get((PLAIN, job), []), taken),
            "start-up, s": spread(start_up[contestant]),
        }


def _warm(host: Host, contestant: Contestant, job: Job, turn: int) -> float:
    """The seconds of a job, after a short one of the same size.

    Every job has a seed of its own: none is one whose answer is remembered.
    """
    short = job._replace(speakers=min(job.speakers, CORES), epochs=1, seed=2 * turn)
    host.ask(contestant, short)
    return host.ask(contestant, job._replace(seed=2 * turn + 1))


def against(name: str, reference: Sequence[float], taken: Sequence[float]) -> Row:
    """reference / taken, where as much was measured of both."""
    return {f"/ {name}": ratio(reference, taken)} if len(reference) == len(taken) else {}


T = TypeVar("T")


def starting_at(contestants: Sequence[T], turn: int) -> list[T]:
    """In each repetition somebody else is first."""
    first = turn % len(contestants)
    return [*contestants[first:], *contestants[:first]]
