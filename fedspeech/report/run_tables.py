"""The tables about the run itself: what was sent, how long it took, where it ran."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

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
