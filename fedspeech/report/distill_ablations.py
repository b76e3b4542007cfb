"""What Figures 2 to 4 of LCMR show (Zhao et al., Interspeech 2022), for this run: WER against the
replacing rate, against the logarithm's base, and by schedule, of rows that are alike in all else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedspeech.report.canvas import Plot
from fedspeech.report.distill_results import KD, STUDENT, DistillResults, Row
from fedspeech.report.shapes import Line, Rate, lines, rates

LOGARITHMIC = "logarithmic"


class Group(NamedTuple):
    """Rows that are alike in `common`, settings of a section `replacing`, and differ in another."""

    common: dict[str, Any]
    rows: list[Row]


def by_rate(results: DistillResults) -> Plot | None:
    """A line for each schedule; None where no rows differ in nothing but the rate."""
    return _curves(results, _groups(results, "rate"), "rate", "replacing rate p_0")


def by_base(results: DistillResults) -> Plot | None:
    """Of the logarithmic schedule; None where no rows differ in nothing but the base."""
    return _curves(results, _groups(results, "base"), "base", "base B of the logarithm")


def by_schedule(results: DistillResults) -> Plot | None:
    """A row for each; None where no rows differ in nothing but the schedule."""
    groups = _groups(results, "schedule")
    if not groups:
        return None
    name = _namer(groups)
    found = [
        Rate(
            ", ".join(filter(None, (_value(row, "schedule"), name(group)))), *_rate(row), row.seeds
        )
        for group in groups
        for row in group.rows
    ]
    found += [Rate(row.row, *_rate(row), row.seeds) for row in _baselines(results)]
    return rates(found, "WER %", "by-schedule", _caption(groups, "by schedule"))


FIGURES: dict[str, Callable[[DistillResults], Plot | None]] = {
    "Replacing rate": by_rate,
    "Base of the logarithm": by_base,
    "Schedules": by_schedule,
}
"""By their titles."""


def _curves(
    results: DistillResults, groups: Sequence[Group], varied: str, label: str
) -> Plot | None:
    if not groups:
        return None
    name, found = _namer(groups), []
    for place, group in enumerate(groups):
        rows = sorted(group.rows, key=lambda row: _value(row, varied))
        x, ranges = [_value(row, varied) for row in rows], [(row.low, row.high) for row in rows]
        y = [row.mean for row in rows]
        found.append(Line(name(group) or "modules replaced", x, y, place, "o", None, ranges))
    ends = [end(x for line in found for x in line.x) for end in (min, max)]
    for place, row in enumerate(_baselines(results), len(found)):
        found.append(Line(row.row, ends, (row.mean, row.mean), place, style=":"))
    return lines(found, (label, "WER %"), f"by-{varied}", _caption(groups, f"against the {label}"))


def _groups(results: DistillResults, varied: str) -> list[Group]:
    """The rows that differ in one setting and in nothing else, where they are several."""
    found: dict[str, Group] = {}
    for row in results.table:
        if row.replacing is None or (varied == "base" and row.replacing.schedule != LOGARITHMIC):
            continue
        common = row.replacing.model_dump(exclude={varied})
        if varied == "schedule" or common.get("schedule", LOGARITHMIC) != LOGARITHMIC:
            del common["base"]  # the others have none
        group = found.setdefault(str(common), Group(common, []))
        # Of rows with the same value, such as logarithms of several bases, the first one.
        if _value(row, varied) not in [_value(other, varied) for other in group.rows]:
            group.rows.append(row)
    return [group for group in found.values() if len(group.rows) > 1]


def _value(row: Row, setting: str) -> Any:
    return getattr(row.replacing, setting)


def _rate(row: Row) -> tuple[float, float, float]:
    return row.mean, row.low, row.high


def _baselines(results: DistillResults) -> list[Row]:
    return [row for row in results.table if row.row in (STUDENT, KD)]


def _namer(groups: Sequence[Group]) -> Callable[[Group], str]:
    """What names a group among these: the settings in which they are not all alike."""
    shared = _shared(groups)
    return lambda group: _words({k: v for k, v in group.common.items() if k not in shared})


def _caption(groups: Sequence[Group], how: str) -> str:
    shared = _words(_shared(groups))
    return (
        f"WER in percent {how}, with its 95 % interval, of rows that are alike in all else"
        f"{f' (all of them: {shared})' if shared else ''}, beside the student without modules "
        "replaced."
    )


def _shared(groups: Sequence[Group]) -> dict[str, Any]:
    first, *others = (group.common for group in groups)
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(
        str(value) if key == "schedule" else f"{key} {value:g}" for key, value in settings.items()
    )
