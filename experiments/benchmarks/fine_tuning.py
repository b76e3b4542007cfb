"""Speakers fine-tuned per second, start-up shown by itself; then 40 speakers from start to end."""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import CORES, FIELD, OURS, PLAIN, RACE, Contestant
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Child, Failed, Row, Setting, ratio, say, spread
from experiments.benchmarks.workload import Job, Workload

THROUGHPUT = "Speakers fine-tuned per second, start-up excluded"
START_TO_END = "From start to end"
LIMIT = 2400.0
ANSWER_LIMIT = 300.0
"""Seconds that one answer may take."""
PANELS = (
    Panel(THROUGHPUT, "contestant", "/ plain's speed", ("size",)),
    Panel(START_TO_END, "contestant", "seconds", ("size",)),
)


@dataclass(frozen=True)
class Plan:
    """Jobs without their seeds, how often each is repeated, and the utterances of each speaker."""

    jobs: tuple[Job, ...]
    repeats: int
    race: Job
    races: int
    utterances: int = 48
    field: tuple[Contestant, ...] = FIELD
    runners: tuple[Contestant, ...] = RACE


FULL = Plan(
    jobs=(Job("0.1M", 8, 12, 0), Job("1M", 4, 12, 0), Job("14M", 2, 2, 0)),
    repeats=3,
    race=Job("0.1M", 40, 12, 0),
    races=3,
)
QUICK = Plan(
    jobs=(Job("0.1M", 4, 2, 0), Job("1M", 2, 1, 0)), repeats=2, race=Job("0.1M", 8, 2, 0), races=1
)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """Throughput of everybody at each size, then the race."""
    speakers = max(job.speakers for job in (*plan.jobs, plan.race))
    speech = workload.speak(speakers, plan.utterances, setting.seed)
    held = workload.prepare(setting.folder / "workload", speech, setting.seed)
    field = Field(setting.folder, held)
    try:
        for job in plan.jobs:
            yield from throughput(field, plan, job)
    finally:
        field.close()
    yield from start_to_end(setting, plan, held)


class Field:
    """Everybody's processes, all alive at once, so that in each repetition all take turns."""

    def __init__(self, folder: Path, held: Workload) -> None:
        self._folder, self.held = folder, held
        self._children: dict[Any, Child] = {}
        self._folders = itertools.count()
        self._seeds = itertools.count(1)
        self.start_up: dict[Any, float] = {}
        """Seconds until a process could be asked, by what it serves."""

    def ask(self, contestant: Contestant, job: Job) -> float:
        """The seconds that a job takes. Raises Failed; the next job meets a new process."""
        child = self._child(contestant)
        try:
            seconds = child.ask(
                job._replace(seed=next(self._seeds), how=contestant.how), ANSWER_LIMIT
            )
        except Failed:
            del self._children[contestant.process]
            raise
        return float(seconds)

    def _child(self, contestant: Contestant) -> Child:
        key = contestant.process
        if key not in self._children:
            contestant.check()
            number = next(self._folders)
            own = self.held.copy(self._folder / f"field-{number}")
            child = contestant.start(own, self._folder / "logs" / f"field-{number}.log")
            child.receive(ANSWER_LIMIT)
            self._children[key], self.start_up[key] = child, child.age
        return self._children[key]

    def close(self) -> None:
        """End all processes."""
        for child in self._children.values():
            child.close()


def throughput(field: Field, plan: Plan, job: Job) -> Iterator[Row]:
    """A row for each contestant: a job of one epoch to warm up, then the repetitions in turns."""
    seconds: dict[Contestant, list[float]] = {contestant: [] for contestant in plan.field}
    reasons: dict[Contestant, str] = {}
    warm = job._replace(speakers=min(job.speakers, CORES), epochs=1)
    for turn in range(-1, plan.repeats):
        say(f"{job.size}: {f'repetition {turn + 1}' if turn >= 0 else 'warming up'}")
        for contestant in _from(plan.field, turn):
            if contestant in reasons:
                continue
            try:
                taken = field.ask(contestant, warm if turn < 0 else job)
            except Failed as reason:
                reasons[contestant] = str(reason)
                continue
            if turn >= 0:
                seconds[contestant].append(taken)
    for contestant in plan.field:
        row: Row = {"table": THROUGHPUT, "size": job.size, "contestant": contestant.name}
        if contestant in reasons:
            yield {**row, "failed": reasons[contestant]}
            continue
        taken = seconds[contestant]
        yield {
            **row,
            "updates per speaker": field.held.updates(job),
            "speakers per second": spread([job.speakers / s for s in taken]),
            **_against("plain's speed", seconds.get(PLAIN, []), taken),
            "start-up, s": field.start_up[contestant.process],
        }


def _against(name: str, reference: Sequence[float], taken: Sequence[float]) -> Row:
    return {f"/ {name}": ratio(reference, taken)} if len(reference) == len(taken) else {}


def start_to_end(setting: Setting, plan: Plan, held: Workload) -> Iterator[Row]:
    """A row for each contestant, whose processes start and end within the time that is taken."""
    seconds: dict[Contestant, list[float]] = {contestant: [] for contestant in plan.runners}
    reasons: dict[Contestant, str] = {}
    for turn in range(plan.races):
        for contestant in _from(plan.runners, turn):
            if contestant in reasons:
                continue
            say(f"start to end, {turn + 1}: {contestant.name}")
            try:
                seconds[contestant].append(_race(setting, plan, held, contestant, turn))
            except Failed as reason:
                reasons[contestant] = str(reason)
    for contestant in plan.runners:
        row: Row = {"table": START_TO_END, "contestant": contestant.name}
        if contestant in reasons:
            yield {**row, "failed": reasons[contestant]}
            continue
        taken = seconds[contestant]
        yield {
            **row,
            "speakers": plan.race.speakers,
            "size": plan.race.size,
            "updates per speaker": held.updates(plan.race),
            "seconds": spread(taken),
            **_against("seconds of fedspeech, fp32", taken, seconds.get(OURS, [])),
        }


def _race(setting: Setting, plan: Plan, held: Workload, contestant: Contestant, turn: int) -> float:
    contestant.check()
    own = held.copy(setting.folder / "race")
    try:
        child = contestant.start(own, setting.folder / "logs" / "race.log")
        child.receive(ANSWER_LIMIT)
        child.ask(plan.race._replace(seed=1000 + turn, how=contestant.how), ANSWER_LIMIT)
        child.close()
        return child.age
    finally:
        shutil.rmtree(own)


def _from(contestants: Sequence[Contestant], turn: int) -> list[Contestant]:
    """In each repetition somebody else is first."""
    first = turn % len(contestants)
    return [*contestants[first:], *contestants[:first]]
