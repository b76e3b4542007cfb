"""The tables about the run itself: what was sent, how long it took, where it ran."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedspeech.report.results import Attended, Results
from fedspeech.report.run_folder import LedgerRow, Timing
from fedspeech.report.tables import Table


def sent(ledger: Iterable[LedgerRow]) -> Table:
    """What crossed the network, by kind and direction, the largest first."""
    bytes_, messages = sums(ledger), Counter((row.kind, row.direction) for row in ledger)
    rows = tuple(
        (kind, direction, f"{messages[kind, direction]:,}", size(total))
        for (kind, direction), total in bytes_
    )
    return Table("Bytes sent", ("kind", "direction", "entries", "size"), rows, words=2)


def sums(ledger: Iterable[LedgerRow]) -> list[tuple[tuple[str, str], int]]:
    """((kind, direction), bytes), the largest first, equal ones by name."""
    totals: Counter[tuple[str, str]] = Counter()
    for row in ledger:
        totals[row.kind, row.direction] += row.bytes
    return sorted(totals.items(), key=lambda item: (-item[1], item[0]))


def size(count: int) -> str:
    """A number of bytes for people: 512 B, 5.3 kB, 84.2 MB (1 MB = 10^6 bytes)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, _ = value / 1000, units.pop(0)
    return f"{count:,} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


ATTENDED = ("asked", "in time", "late", "arrived", "away", "seconds")


def stages(results: Results) -> Table:
    """Who took part in the rounds of each stage, summed up, and how long they lasted."""
    rounds = results.participation.rounds if results.participation else ()
    names = tuple(dict.fromkeys(one.stage for one in rounds))
    by_stage = {name: [one for one in rounds if one.stage == name] for name in names}
    rows = tuple((name, str(len(of)), *_attended(of)) for name, of in by_stage.items())
    notes = ["arrived: late in an earlier round, and taken in a later one; away: not available."]
    if any(one.began for one in rounds):
        notes += ["seconds: from the first question of a round to its last answer or its deadline."]
    elif any(one.seconds for one in rounds):
        notes += ["seconds: simulated, on the devices that federation.participation describes."]
    return Table("Who took part", ("stage", "rounds", *ATTENDED), rows, notes=tuple(notes))


def rounds(results: Results) -> Table:
    """The same, round by round."""
    found = results.participation.rounds if results.participation else ()
    began = ("began",) if any(one.began for one in found) else ()
    rows = tuple(
        (one.stage, str(one.round), *_attended([one]), *([one.began] if began else []))
        for one in found
    )
    return Table("Who took part in each round", ("stage", "round", *ATTENDED, *began), rows)


def _attended(rounds: Sequence[Attended]) -> tuple[str, ...]:
    counts = [(r.asked, r.in_time, r.late, r.arrived, r.not_available) for r in rounds]
    sums = (f"{sum(column):,}" for column in zip(*counts, strict=True))
    seconds = sum(one.seconds for one in rounds)
    return *sums, f"{seconds:,.1f}" if seconds else "–"


def never(results: Results) -> Table:
    """Who took part in no round, and why."""
    found = results.participation.never if results.participation else ()
    rows = tuple(
        (one.speaker, ", ".join(f"{reason}: {count}" for reason, count in one.why.items()))
        for one in found
    )
    columns = ("speaker", "rounds without it, by reason")
    return Table("Speakers without a personal model", columns, rows, words=2)


def timing(timing: Timing) -> Table:
    """Seconds per stage, and whatever else differs from run to run."""
    total = sum(stage.seconds for stage in timing.stages)
    rows = [(stage.stage, f"{stage.seconds:,.1f} s") for stage in timing.stages]
    rows += [("all stages", f"{total:,.1f} s")] if rows else []
    return Table("Time", ("stage", "value"), (*rows, *flat(timing.model_extra or {})))


def environment(environment: Mapping[str, Any]) -> Table:
    """Versions and machine, key by key."""
    return Table("Environment", ("key", "value"), tuple(flat(environment)), words=2)


def flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of every leaf of a JSON value, in its order."""
    if isinstance(value, Mapping):
        items = [(str(name), below) for name, below in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = [(str(number), below) for number, below in enumerate(value)]
    else:
        leaves = value if isinstance(value, list) else [value]
        return [(key, ", ".join(_text(leaf) for leaf in leaves))]
    return [leaf for name, below in items for leaf in flat(below, f"{key}.{name}".lstrip("."))]


def _text(leaf: Any) -> str:
    if leaf is None:
        return "–"
    return f"{round(leaf, 3)}" if isinstance(leaf, float) else f"{leaf}"
