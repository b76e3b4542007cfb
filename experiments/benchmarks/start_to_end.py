"""Many speakers from start to end: what somebody waits for who has typed the command.

Everybody's processes start and end within the time that is taken. In each repetition all take
turns, and nobody else's processes are there meanwhile.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import OURS, QUICKSTART, RACE, Contestant
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.fine_tuning import ANSWER_LIMIT, against, starting_at
from experiments.benchmarks.harness import Failed, Row, Setting, say, spread
from experiments.benchmarks.workload import Job, Workload

TABLE = "From start to end"
LIMIT = 3600.0
PANELS = (Panel(TABLE, "contestant", "seconds", ("size",)),)


@dataclass(frozen=True)
class Plan:
    """A job without its seed, how often each runs it, and the utterances of each speaker."""

    job: Job
    repeats: int
    utterances: int = 48
    runners: tuple[Contestant, ...] = RACE


FULL = Plan(Job("0.1M", 40, 12, 0), repeats=3)
QUICK = Plan(Job("0.1M", 8, 2, 0), repeats=1, runners=(OURS, QUICKSTART))


class Taken(NamedTuple):
    """Seconds until it could be asked, from there until it had answered, and until it was gone."""

    start: float
    work: float
    end: float


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each contestant."""
    speech = workload.speak(plan.job.speakers, plan.utterances, setting.seed)
    held = workload.prepare(setting.folder / "workload", speech, setting.seed)
    yield from race(setting, plan, held)


def race(setting: Setting, plan: Plan, held: Workload) -> Iterator[Row]:
    """A row for each contestant, on speech that is there."""
    taken: dict[Contestant, list[Taken]] = {contestant: [] for contestant in plan.runners}
    reasons: dict[Contestant, str] = {}
    for turn in range(plan.repeats):
        for contestant in starting_at(plan.runners, turn):
            if contestant in reasons:
                continue
            say(f"start to end, {turn + 1}: {contestant.name}")
            try:
                taken[contestant].append(_run(setting, plan, held, contestant))
            except Failed as reason:
                reasons[contestant] = str(reason)
    ours = [sum(one) for one in taken.get(OURS, [])]
    for contestant in plan.runners:
        row: Row = {"table": TABLE, "contestant": contestant.name}
        if contestant in reasons:
            yield {**row, "failed": reasons[contestant]}
            continue
        seconds = [sum(one) for one in taken[contestant]]
        yield {
            **row,
            "speakers": plan.job.speakers,
            "size": plan.job.size,
            "updates per speaker": held.updates(plan.job),
            "seconds": spread(seconds),
            **against("seconds of fedspeech, fp32", seconds, ours),
            "until it can be asked, s": spread([one.start for one in taken[contestant]]),
            "fine-tuning, s": spread([one.work for one in taken[contestant]]),
            "until it is gone, s": spread([one.end for one in taken[contestant]]),
        }


def _run(setting: Setting, plan: Plan, held: Workload, contestant: Contestant) -> Taken:
    contestant.check()
    own = held.copy(setting.folder / "race")
    try:
        child = contestant.start(own, setting.folder / "logs" / "race.log")
        child.receive(ANSWER_LIMIT)
        started = child.age
        child.ask(plan.job._replace(how=contestant.how), ANSWER_LIMIT)
        answered = child.age
        child.close()
        return Taken(started, answered - started, child.age - answered)
    finally:
        shutil.rmtree(own)
