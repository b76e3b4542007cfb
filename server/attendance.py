"""Who takes part in the rounds of a run, by the pseudonyms under which the server knows them."""

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Metadata

from fedspeech import participation, protocol, traces
from fedspeech.config import Config
from fedspeech.config.federation import ParticipationSettings
from fedspeech.corpus.partition import Client, pseudonym
from fedspeech.errors import ConfigError, RunError
from fedspeech.participation import (
    IMPROVE,
    LATE,
    NOT_AVAILABLE,
    NOT_SAMPLED,
    PERSONALIZATION,
    REVOKED,
    Round,
)
from fedspeech.protocol import Member
from fedspeech.run_folder import RunFolder
from server.fleet import FleetGrid
from server.journal import Journal
from strategies.outcome import Failure

FILE = "participation.json"
TRAINING = {protocol.PLAIN_TRAIN: IMPROVE, protocol.PERSONALIZE: PERSONALIZATION}
"""The message that a round begins with, and the stage that it is of."""
UNASKED = {IMPROVE: NOT_SAMPLED, PERSONALIZATION: NOT_AVAILABLE}
"""Why a box was not asked: a strategy of Flower's leaves some out, ours those that are away."""


def plan(settings: Config, clients: Sequence[Client], known: Set[str]) -> tuple[Round, ...]:
    """All rounds of the run; without `federation.participation` everybody is in all of them.

    `known` are the speakers of the corpus. Raises ConfigError where a trace or a factor cannot be
    used, RunError where a round would miss the quorum.
    """
    federation = settings.federation
    asked = federation.participation or ParticipationSettings()
    names = {client.speaker: pseudonym(settings.seed, client.speaker) for client in clients}
    speech = {names[c.speaker]: sum(cut.duration for cut in c.train) for c in clients}
    factors = _factors(asked, settings.seed, names, known)
    rounds = participation.plan(
        asked,
        settings.seed,
        {
            IMPROVE: federation.improve.rounds if federation.improve else 0,
            PERSONALIZATION: federation.rounds,
        },
        participation.work(asked, settings.personal.epochs, speech, factors),
        _trace(asked, names, known),
    )
    if federation.participation is not None:
        participation.check_quorum(rounds, federation.quorum)
    return rounds


def everybody(settings: Config, members: Sequence[Member]) -> tuple[Round, ...]:
    """All rounds of a run on boxes: every box is asked in each, and takes its own time."""
    federation = settings.federation
    improve = federation.improve.rounds if federation.improve else 0
    stages = {IMPROVE: improve, PERSONALIZATION: federation.rounds}
    at_once = dict.fromkeys((member.speaker for member in members), 0.0)
    return participation.plan(ParticipationSettings(), settings.seed, stages, at_once)


def watch(grid: FleetGrid, journal: Journal, members: Sequence[Member]) -> None:
    """Let the journal know when boxes were asked to train, and how long they took; and the grid to
    which of them an earlier process of the run has sent G.
    """
    speakers = {member.node: member.speaker for member in members}
    asked = {speaker for _, speaker, _ in journal.asked(protocol.PERSONALIZE)}
    grid.may_hold(node for node, speaker in speakers.items() if speaker in asked)

    def note(about: Metadata, began: float, seconds: float) -> None:
        if (kind := about.message_type) in TRAINING:
            speaker = speakers[about.dst_node_id]
            journal.add_time(int(about.group_id), speaker, kind, began, seconds)

    grid.over = note


def as_it_was(
    journal: Journal, members: Sequence[Member], failures: Sequence[Failure]
) -> tuple[Round, ...]:
    """Who took part in the rounds of a run on boxes, which nobody could plan."""
    owed = {ended + 1: state["overdue"] for ended, state in journal.ended_rounds().items()}
    rounds = []
    for kind, stage in TRAINING.items():
        reasons = {(f.round, f.speaker): f.reason for f in failures if f.message == kind}
        rows, times = journal.asked(kind), journal.times(kind)
        for number in dict.fromkeys(round for round, _, _ in rows):
            asked = {speaker: answered for round, speaker, answered in rows if round == number}
            why = {
                member.speaker: _why(reasons.get((number, member.speaker), UNASKED[stage]))
                for member in members
                if not asked.get(member.speaker)
            }
            late = owed.get(number, {}) if stage == PERSONALIZATION else {}
            arrived = {speaker: began for speaker, began in late.items() if asked.get(speaker)}
            when = {s: times.get((number, s), (math.inf, 0.0)) for s in asked}
            rounds.append(_as_it_was(stage, number, when, arrived, why))
    return tuple(rounds)


def _as_it_was(
    stage: str,
    number: int,
    times: Mapping[str, tuple[float, float]],
    arrived: Mapping[str, int],
    absent: Mapping[str, str],
) -> Round:
    """`times` are when each speaker was asked (Unix time), and how many seconds that took."""
    took = {s: time for s, time in times.items() if absent.get(s) != REVOKED}
    began = min((begin for begin, _ in took.values()), default=math.inf)
    ends = [begin + seconds - began for begin, seconds in took.values() if begin < math.inf]
    return Round(
        *(stage, number, {s: seconds for s, (_, seconds) in took.items()}),
        *(arrived, absent, max(ends, default=0.0)),
        began=_moment(began) if ends else "",
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _why(reason: str) -> str:
    if not reason.startswith(protocol.NO_ANSWER):
        return reason
    return NOT_AVAILABLE if protocol.OFFLINE in reason else LATE


def of(stage: str, rounds: Sequence[Round]) -> list[Round]:
    """The rounds of one stage."""
    return [one for one in rounds if one.stage == stage]


def among(members: Sequence[Member], rounds: Sequence[Round]) -> list[Round]:
    """The same rounds without speakers that are not there after all."""
    there = {member.speaker for member in members}
    return [
        replace(one, asked={s: seconds for s, seconds in one.asked.items() if s in there})
        for one in rounds
    ]


def _factors(
    asked: ParticipationSettings, seed: int, names: dict[str, str], known: Set[str]
) -> dict[str, float]:
    if asked.factors is None:
        return participation.draw_factors(asked.spread, seed, sorted(names.values()))
    found = traces.factors(Path(asked.factors), known)
    if missing := sorted(set(names) - set(found)):
        raise ConfigError(
            f"{asked.factors}: no factor for {len(missing)} of {len(names)} clients "
            f"({', '.join(missing[:5])}{', …' if len(missing) > 5 else ''})"
        )
    return {name: found[speaker] for speaker, name in names.items()}


def _trace(
    asked: ParticipationSettings, names: dict[str, str], known: Set[str]
) -> participation.Trace | None:
    if not isinstance(asked.available, str):
        return None
    found = traces.spans(Path(asked.available), known)
    return {name: found.get(speaker, []) for speaker, name in names.items()}


def keep(rounds: Sequence[Round], run: RunFolder) -> None:
    """Write participation.json.

    Raises RunError where the run that is resumed had another plan: a trace that was changed
    meanwhile would make another run of it.
    """
    path, now = run.path / FILE, participation.record(rounds)
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged, cannot be resumed: {error}") from None
        if before != now:
            raise RunError(
                f"{path}: who takes part is not what this run began with; was a file that "
                "federation.participation names changed?"
            )
    run.write_json(FILE, now)
