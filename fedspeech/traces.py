"""Files about devices, by the ids of their speakers: when each is there, how fast it is, and what
its network bears.

speaker,from,until          speaker,factor          speaker,generic,base,personal
anna,1,3                    anna,0.5                anna,1MB,100kB,100kB
anna,7,7                    bert,2.0                bert,,50kB,20x
"""

import csv
import math
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from fedspeech.diff.budget import check_budgets
from fedspeech.errors import ConfigError, DiffError

SPANS, FACTORS = ("speaker", "from", "until"), ("speaker", "factor")
BUDGETS = ("speaker", "generic", "base", "personal")


def spans(path: Path, known: Set[str]) -> dict[str, list[range]]:
    """The rounds in which each speaker is available; whom no line names never is.

    `known` are the speakers of the corpus. Raises ConfigError, naming file and line, where a line
    names another one, or is not a speaker and two rounds (from 1) in their order.
    """
    found: dict[str, list[range]] = {}
    for where, (speaker, *ends) in _rows(path, SPANS, known):
        first, last = (_round(end) for end in ends)
        if not 1 <= first <= last:
            raise ConfigError(
                f"{where}: expected two rounds, the first (at least 1) and the last, found "
                + ",".join(ends)
            )
        found.setdefault(speaker, []).append(range(first, last + 1))
    return found


def _round(text: str) -> int:
    """Its number, or 0 where the text is none that a run could have."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def factors(path: Path, known: Set[str]) -> dict[str, float]:
    """How many times as long as a device of factor 1 each speaker's device takes.

    `known` are the speakers of the corpus. Raises ConfigError, naming file and line, where a line
    names another one, names one again, or its factor is not a number above 0.
    """
    found: dict[str, float] = {}
    for where, (speaker, text) in _rows(path, FACTORS, known):
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not 0 < factor < math.inf:
            raise ConfigError(f"{where}: expected a factor above 0, found {text}")
        if speaker in found:
            raise ConfigError(f"{where}: speaker {speaker} has a factor already")
        found[speaker] = factor
    return found


def budgets(path: Path, known: Set[str]) -> dict[str, dict[str, str]]:
    """The budgets of each speaker's device, by what they are for; an empty field is none.

    `known` are the speakers of the corpus. Raises ConfigError, naming file and line, where a line
    names another one, names one again, or has a field that is no budget.
    """
    found: dict[str, dict[str, str]] = {}
    for where, (speaker, *fields) in _rows(path, BUDGETS, known):
        given = {what: text for what, text in zip(BUDGETS[1:], fields, strict=True) if text}
        try:
            check_budgets(given)
        except DiffError as error:
            raise ConfigError(f"{where}: {error}") from None
        if speaker in found:
            raise ConfigError(f"{where}: speaker {speaker} has budgets already")
        found[speaker] = given
    return found


def _rows(path: Path, columns: Sequence[str], known: Set[str]) -> Iterator[tuple[str, list[str]]]:
    """FILE:LINE and the fields of each line below the header; empty lines are passed over."""
    try:
        lines = csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True)
        rows = [(f"{path}:{lines.line_num}", [f.strip() for f in row]) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not readable as CSV: {error}") from None
    expected = ",".join(columns)
    if not rows or rows[0][1] != list(columns):
        found = ",".join(rows[0][1]) if rows else "nothing"
        raise ConfigError(f"{path}:1: expected the header {expected}, found {found}")
    for where, row in rows[1:]:
        if len(row) != len(columns):
            raise ConfigError(f"{where}: expected {expected}, found {','.join(row)}")
        if row[0] not in known:
            raise ConfigError(f"{where}: the corpus has no speaker {row[0]!r}")
        yield where, row
