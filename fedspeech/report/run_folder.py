"""What a run left in its folder, read and checked before anything is drawn.

Only `results.json` has to be there. What else is missing is left out of the report.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from fedspeech.errors import RunError
from fedspeech.report.diff_results import DiffResults
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.parallel_results import ParallelResults
from fedspeech.report.results import Record, Results, check

OfTrainings = DiffResults | DistillResults | ParallelResults
AnyResults = Results | OfTrainings
KINDS: dict[str, type[AnyResults]] = {
    "neural-diff": DiffResults,
    "distillation": DistillResults,
    "data-parallel": ParallelResults,
}
"""Any other kind is a personalization, which refuses what it is not."""
LEDGER_COLUMNS = ["round", "speaker", "direction", "kind", "bytes"]


@dataclass(frozen=True)
class LedgerRow:
    """Bytes sent to (`down`) or by (`up`) one speaker."""

    round: int
    speaker: str
    direction: str
    kind: str
    bytes: int


class Stage(Record):
    """One part of the way from corpus to results."""

    stage: str
    seconds: float


class Timing(Record):
    """`timing.json`; whatever else it holds is kept as it is."""

    model_config = ConfigDict(extra="allow")

    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class RunFolder:
    """What the report is made of."""

    results: AnyResults
    ledger: tuple[LedgerRow, ...]
    timing: Timing
    environment: Mapping[str, Any]
    config: str


def read(folder: Path) -> RunFolder:
    """Everything the report needs from a run's folder.

    Raises RunError, naming file and line, where `results.json` is missing or any file is malformed.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise RunError(f"{path}: no such file; expected the folder of a finished run")
    return RunFolder(
        results=parse(_json(path), str(path)),
        ledger=_ledger(folder / "ledger.csv"),
        timing=check(Timing, _json(folder / "timing.json"), str(folder / "timing.json")),
        environment=_json(folder / "environment.json"),
        config=_text(folder / "config.toml"),
    )


def parse(table: Mapping[str, Any], where: str) -> AnyResults:
    """What `results.json` holds, by its kind. Raises RunError where it is not as expected."""
    return check(KINDS.get(str(table.get("kind")), Results), table, where)


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _ledger(path: Path) -> tuple[LedgerRow, ...]:
    lines = csv.reader(_text(path).splitlines())
    header = next(lines, LEDGER_COLUMNS)
    if header != LEDGER_COLUMNS:
        raise RunError(f"{path}:1: expected the columns {LEDGER_COLUMNS}, found {header}")
    rows = []
    for line in lines:
        try:
            round, speaker, direction, kind, size = line
            rows.append(LedgerRow(int(round), speaker, direction, kind, int(size)))
        except ValueError:
            where = f"{path}:{lines.line_num}"
            raise RunError(f"{where}: expected {','.join(LEDGER_COLUMNS)}, found {line}") from None
    return tuple(rows)
