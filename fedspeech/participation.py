"""Who takes part in which round, and how long a round lasts, in simulated time.

A plan follows from the settings, the seed and the speakers' speech before anything runs: nothing
sleeps, and how fast a machine is changes nothing. A round goes as in Bonawitz et al., "Towards
Federated Learning at Scale: System Design" (MLSys 2019): of the speakers that are available some
are sampled; these are asked; the round ends when all have answered, or at the deadline.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedspeech import seeding
from fedspeech.config.federation import ParticipationSettings
from fedspeech.errors import RunError

IMPROVE, PERSONALIZATION = "improve", "personalization"
NOT_SAMPLED, NOT_AVAILABLE = "not sampled", "not available"
LATE, AT_WORK = "after the deadline", "at work on an earlier round"
REVOKED = "its key was revoked"
"""Of a box, which is never available again."""
DIGITS = 6

Trace = Mapping[str, Sequence[range]]
"""The rounds in which each speaker is available, counted through the run."""


@dataclass(frozen=True)
class Round:
    """Who takes part in one round; speakers are in the order of their ids."""

    stage: str
    number: int
    """Within the stage, from 1."""
    asked: Mapping[str, float]
    """Who is asked, and after how many seconds each of them is done: simulated, but of boxes."""
    arrived: Mapping[str, int]
    """Whose answer was late in an earlier round and is taken in this one; that round's number."""
    absent: Mapping[str, str]
    """Everybody whose answer is not taken in this round, and why."""
    seconds: float
    """How long the round lasts, likewise."""
    began: str = ""
    """Of a round on boxes: when it began, in UTC (ISO 8601)."""

    @property
    def in_time(self) -> tuple[str, ...]:
        """Who is asked in this round and answers before the deadline, for this round.

        A box that was late is asked once more, for the round in which it began.
        """
        others = self.absent.keys() | self.arrived.keys()
        return tuple(speaker for speaker in self.asked if speaker not in others)

    @property
    def answers(self) -> dict[str, int]:
        """Whose answer is taken in this round, and the number of the round it belongs to."""
        return dict(sorted({**dict.fromkeys(self.in_time, self.number), **self.arrived}.items()))


class Task(NamedTuple):
    """What a device is at work on after the round ended: the round's number, seconds to go."""

    number: int
    seconds: float


def draw_factors(spread: float, seed: int, speakers: Sequence[str]) -> dict[str, float]:
    """How many times as long as the median each device takes: exp(spread * z), z normal."""
    draws = {s: seeding.generator(seed, 0, s, "speed of the device") for s in speakers}
    return {s: math.exp(spread * draw.standard_normal()) for s, draw in draws.items()}


def work(
    settings: ParticipationSettings,
    epochs: int,
    speech: Mapping[str, float],
    factors: Mapping[str, float],
) -> dict[str, float]:
    """Simulated seconds from a question to the answer; `speech` is the seconds of train_s."""
    return {
        speaker: seconds * epochs * factors[speaker] * settings.cost + settings.exchange
        for speaker, seconds in speech.items()
    }


def plan(
    settings: ParticipationSettings,
    seed: int,
    stages: Mapping[str, int],
    work: Mapping[str, float],
    trace: Trace | None = None,
) -> tuple[Round, ...]:
    """All rounds of the stages in their order; `stages` says how many rounds each has.

    `trace` takes the place of the rate in the settings. A device that is late is let go where its
    answer is dropped. Where it is not, nothing else is asked of the device until it is done.
    """
    names = [(stage, i) for stage, count in stages.items() for i in range(1, count + 1)]
    rounds: list[Round] = []
    tasks: dict[str, Task] = {}
    for count, (stage, number) in enumerate(names, 1):
        there = _available(settings, seed, count, work, trace)
        idle = [speaker for speaker in there if speaker not in tasks]
        draw = seeding.generator(seed, count, "", "who is asked")
        asked = {speaker: work[speaker] for speaker in sample(settings.sample, idle, draw)}
        reasons = {
            **{s: NOT_SAMPLED if s in there else NOT_AVAILABLE for s in sorted(work)},
            **dict.fromkeys(tasks, AT_WORK),
        }
        one = _round(stage, number, asked, tasks, reasons, settings.deadline)
        rounds.append(one)
        kept = stage == PERSONALIZATION and settings.late == "next-round"
        tasks = _go_on(one, tasks, kept)
    return tuple(rounds)


def sample(wanted: float, speakers: Sequence[str], draw: np.random.Generator) -> list[str]:
    """`wanted` of the speakers, without replacement, in their order.

    A whole number is how many (all where there are fewer), any other a share of them.
    """
    share = isinstance(wanted, float)
    size = max(1, round(wanted * len(speakers))) if share else int(wanted)
    chosen = draw.choice(len(speakers), min(size, len(speakers)), replace=False)
    return [speakers[i] for i in sorted(chosen)]


def _available(
    settings: ParticipationSettings,
    seed: int,
    count: int,
    speakers: Mapping[str, float],
    trace: Trace | None,
) -> list[str]:
    if trace is not None:
        return [s for s in sorted(speakers) if any(count in span for span in trace.get(s, ()))]
    if settings.available == 1:
        return sorted(speakers)
    draws = {s: seeding.generator(seed, count, s, "availability") for s in sorted(speakers)}
    return [s for s, draw in draws.items() if draw.random() < float(settings.available)]


def _round(
    stage: str,
    number: int,
    asked: Mapping[str, float],
    tasks: Mapping[str, Task],
    reasons: Mapping[str, str],
    deadline: float | None,
) -> Round:
    """`reasons` are why a speaker is not asked, for those that are not."""
    limit = math.inf if deadline is None else deadline
    late = {speaker for speaker, seconds in asked.items() if seconds > limit}
    arrived = {s: task.number for s, task in sorted(tasks.items()) if task.seconds <= limit}
    done = [seconds for speaker, seconds in asked.items() if speaker not in late]
    done += [tasks[speaker].seconds for speaker in arrived]
    absent = {
        speaker: LATE if speaker in late else why
        for speaker, why in reasons.items()
        if speaker in late or not (speaker in asked or speaker in arrived)
    }
    return Round(stage, number, asked, arrived, absent, limit if late else max(done, default=0.0))


def _go_on(one: Round, tasks: Mapping[str, Task], kept: bool) -> dict[str, Task]:
    """What devices are still at work on after a round; `kept`: late answers of it are awaited."""
    left = {
        speaker: Task(task.number, task.seconds - one.seconds)
        for speaker, task in tasks.items()
        if speaker not in one.arrived
    }
    late = {speaker for speaker in one.asked if speaker in one.absent} if kept else set()
    return left | {s: Task(one.number, one.asked[s] - one.seconds) for s in sorted(late)}


def check_quorum(rounds: Sequence[Round], quorum: float) -> None:
    """Raise RunError where fewer of those asked in a round answer in time than the quorum, or none.

    A round that asks nobody will do where it has an answer from an earlier one.
    """
    for one in rounds:
        least = max(quorum * len(one.asked), 1)
        if len(one.in_time if one.asked else one.arrived) >= least:
            continue
        counts = Counter(one.absent.values())
        why = ", ".join(f"{counts[reason]} {reason}" for reason in sorted(counts))
        raise RunError(
            f"federation.participation: {one.stage}, round {one.number}: {len(one.in_time)} of "
            f"{len(one.asked)} speakers that are asked answer in time, expected at least "
            f"{least:g} (federation.quorum); of all speakers {why}"
        )


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """For results.json: how many were to take part in each round, and who never in personalization.

    Who fails on the way is not told here but among the failures of the run.
    """
    return {
        "seconds": round(sum(one.seconds for one in rounds), DIGITS),
        "rounds": [_counts(one) for one in rounds],
        "never": _never([one for one in rounds if one.stage == PERSONALIZATION]),
    }


def _counts(one: Round) -> dict[str, Any]:
    why = Counter(one.absent.values())
    return {
        "stage": one.stage,
        "round": one.number,
        "asked": len(one.asked),
        "in_time": len(one.in_time),
        "late": why[LATE],
        "arrived": len(one.arrived),
        "at_work": why[AT_WORK],
        "not_available": why[NOT_AVAILABLE] + why[REVOKED],
        "not_sampled": why[NOT_SAMPLED],
        "seconds": round(one.seconds, DIGITS),
        **({"began": one.began} if one.began else {}),
    }


def _never(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    taken = {speaker for one in rounds for speaker in one.answers}
    speakers = sorted({speaker for one in rounds for speaker in one.absent} - taken)
    why = {s: Counter(one.absent[s] for one in rounds) for s in speakers}
    return [{"speaker": s, "why": dict(sorted(why[s].items()))} for s in speakers]


def record(rounds: Sequence[Round]) -> dict[str, Any]:
    """For participation.json: everything, speaker by speaker."""
    return {
        "rounds": [
            {
                "stage": one.stage,
                "round": one.number,
                **({"began": one.began} if one.began else {}),
                "seconds": round(one.seconds, DIGITS),
                "asked": {speaker: round(s, DIGITS) for speaker, s in one.asked.items()},
                "arrived": dict(one.arrived),
                "absent": dict(one.absent),
            }
            for one in rounds
        ]
    }
