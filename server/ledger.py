"""`ledger.csv`: the bytes of every message's content, as the journal counted them.

A message that is sent again is not counted again, and what Flower and the network put around its
content is not in it: the ledger of a run that is repeated or resumed is the same.
"""

import csv
from pathlib import Path
from typing import Any

from fedspeech.tensors import write_whole
from server.journal import Journal

COLUMNS = ("round", "speaker", "direction", "kind", "bytes")


def write(path: Path, journal: Journal) -> dict[str, int]:
    """Write the ledger; the bytes in each direction."""
    rows = list(journal.ledger())
    write_whole(path, lambda part: _write(part, rows))
    return {
        direction: sum(size for _, _, way, _, size in rows if way == direction)
        for direction in ("down", "up")
    }


def _write(path: Path, rows: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
