"""What is done: one row per message that was sent and answered; `--resume` reads it."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedspeech.errors import RunError

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY,
    position INTEGER,
    round INTEGER,
    speaker TEXT,
    kind TEXT,
    bytes_down INTEGER,
    bytes_up INTEGER,
    answer TEXT,
    arrays TEXT
);
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, state TEXT);
CREATE TABLE IF NOT EXISTS given_up (
    round INTEGER,
    kind TEXT,
    speaker TEXT,
    code INTEGER,
    reason TEXT,
    PRIMARY KEY (round, kind, speaker)
);
CREATE TABLE IF NOT EXISTS times (
    round INTEGER,
    speaker TEXT,
    kind TEXT,
    began REAL,
    seconds REAL,
    PRIMARY KEY (round, speaker, kind)
);
"""

SINCE = "round > (SELECT COALESCE(MAX(round), 0) FROM rounds)"
PLACES = "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Asked again, a device may hold what it was sent before: what went down the first time counts.
ANSWERED = (
    "ON CONFLICT (id) DO UPDATE SET position = excluded.position, bytes_up = excluded.bytes_up, "
    "answer = excluded.answer, arrays = excluded.arrays"
)
UNANSWERED = (
    "ON CONFLICT (id) DO UPDATE SET bytes_up = MAX(bytes_up, excluded.bytes_up) "
    "WHERE answer IS NULL"
)


@dataclass(frozen=True)
class Row:
    """One answered message; `answer` is JSON, `arrays` names a file beside the journal, or ''.

    `position` counts the messages of the round as they were asked.
    """

    id: str
    position: int
    round: int
    speaker: str
    kind: str
    bytes_down: int
    bytes_up: int
    answer: dict[str, Any]
    arrays: str = ""


NAMES = [field.name for field in fields(Row)]
ROW: TypeAdapter[Row] = TypeAdapter(Row)
SIZES = TypeAdapter(list[tuple[int, str, str, int, int]])


class Journal:
    """A SQLite file; a row is there whole or not at all, whenever the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._database = sqlite3.connect(path)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            raise RunError(f"{path}: cannot open the journal: {error}") from None
        except sqlite3.DatabaseError as error:
            raise self.damaged(error) from None

    def get(self, id: str) -> Row | None:
        """The row of an answered message, or None."""
        rows = self._select(
            "SELECT position, round, speaker, kind, bytes_down, bytes_up, answer, arrays "
            "FROM messages WHERE id = ? AND answer IS NOT NULL",
            id,
        )
        for *before, answer, arrays in rows:
            values = [id, *before, self._parsed(answer), arrays]
            try:
                return ROW.validate_python(dict(zip(NAMES, values, strict=True)))
            except ValidationError as error:
                raise self.damaged(error.errors()[0]["msg"]) from None
        return None

    def last(self, kind: str, speaker: str) -> Row | None:
        """The last answer of a speaker to one type of message since the last round that ended."""
        rows = self._select(
            "SELECT id FROM messages WHERE kind = ? AND speaker = ? AND answer IS NOT NULL "
            f"AND {SINCE} ORDER BY round DESC LIMIT 1",
            *(kind, speaker),
        )
        return self.get(rows[0][0]) if rows else None

    def add(self, *rows: Row) -> None:
        """Keep rows, in the place of older ones of the same ids; all of them or, killed, none.

        Where there was one already, its `bytes_down` stay.
        """
        self._write(f"INSERT INTO messages {PLACES} {ANSWERED}", map(_values, rows))

    def add_unanswered(self, *rows: Row) -> None:
        """Count messages that brought an error, or nothing so far; `get` knows none of them."""
        values = [(*_values(row)[:7], None, "") for row in rows]
        self._write(f"INSERT INTO messages {PLACES} {UNANSWERED}", values)

    def give_up(self, round: int, kind: str, errors: Mapping[str, tuple[int, str]]) -> None:
        """What a round came to without these speakers is used: they are not asked again, and their
        errors (code, reason) stand.
        """
        values = [(round, kind, speaker, *error) for speaker, error in errors.items()]
        self._write("INSERT OR IGNORE INTO given_up VALUES (?, ?, ?, ?, ?)", values)

    def given_up(self) -> dict[tuple[int, str, str], tuple[int, str]]:
        """What `give_up` was told, by round, message type and speaker."""
        rows = self._select("SELECT round, kind, speaker, code, reason FROM given_up")
        return {(round, kind, speaker): (code, why) for round, kind, speaker, code, why in rows}

    def ask_again(self, kind: str, speaker: str) -> None:
        """Forget the answers of a speaker to one type of message since the last round that ended;
        what was sent stays.
        """
        self._write(
            f"UPDATE messages SET answer = NULL WHERE kind = ? AND speaker = ? AND {SINCE}",
            [(kind, speaker)],
        )

    def asked(self, kind: str) -> list[tuple[int, str, bool]]:
        """(round, speaker, whether it answered) of every message of a type, in that order."""
        rows = self._select(
            "SELECT round, speaker, MAX(answer IS NOT NULL) FROM messages WHERE kind = ? "
            "GROUP BY round, speaker ORDER BY round, speaker",
            kind,
        )
        return [(round, speaker, bool(answered)) for round, speaker, answered in rows]

    def add_time(self, round: int, speaker: str, kind: str, began: float, seconds: float) -> None:
        """When a message was sent (Unix time), and after how many seconds that was over."""
        values = [(round, speaker, kind, began, seconds)]
        self._write("INSERT OR REPLACE INTO times VALUES (?, ?, ?, ?, ?)", values)

    def times(self, kind: str) -> dict[tuple[int, str], tuple[float, float]]:
        """What `add_time` was told of messages of a type, by round and speaker."""
        rows = self._select("SELECT round, speaker, began, seconds FROM times WHERE kind = ?", kind)
        return {(round, speaker): (began, seconds) for round, speaker, began, seconds in rows}

    def last_round(self) -> dict[str, Any] | None:
        """What `end_round` was told of the last round that ended, or None."""
        rows = self._select("SELECT state FROM rounds ORDER BY round DESC LIMIT 1")
        return self._parsed(rows[0][0]) if rows else None

    def ended_rounds(self) -> dict[int, dict[str, Any]]:
        """What `end_round` was told of each round."""
        rows = self._select("SELECT round, state FROM rounds ORDER BY round")
        return {round: self._parsed(state) for round, state in rows}

    def end_round(self, round: int, state: Mapping[str, Any]) -> None:
        """A round has ended: its messages are not asked again, and the next starts from `state`."""
        said = json.dumps(state, sort_keys=True)
        self._write("INSERT OR REPLACE INTO rounds VALUES (?, ?)", [(round, said)])

    def ledger(self) -> Iterator[tuple[int, str, str, str, int]]:
        """(round, speaker, direction, kind, bytes) of every message, in the order of asking.

        One that was asked again counts once: so a run that was resumed has the same ledger.
        """
        rows = self._select(
            "SELECT round, speaker, kind, bytes_down, bytes_up FROM messages "
            "ORDER BY round, position, speaker, id"
        )
        try:
            checked = SIZES.validate_python(rows, strict=True)
        except ValidationError as error:
            raise self.damaged(error.errors()[0]["msg"]) from None
        for round, speaker, kind, down, up in checked:
            yield round, speaker, "down", kind, down
            yield round, speaker, "up", kind, up

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise self.damaged(error) from None

    def _select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            raise RunError(f"{self.path}: cannot read the journal: {error}") from None
        except sqlite3.DatabaseError as error:
            raise self.damaged(error) from None

    def _write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self.path}: cannot write the journal: {error}") from None

    def damaged(self, error: object) -> RunError:
        """What to raise where something in it is not what was written."""
        return RunError(
            f"{self.path}: the journal is damaged ({error}); move it away to ask every device "
            "anew: what the devices have finished is kept, and the ledger counts what is sent then"
        )


def _values(row: Row) -> tuple[Any, ...]:
    said = json.dumps(row.answer, sort_keys=True)
    where = row.id, row.position, row.round, row.speaker, row.kind
    return *where, row.bytes_down, row.bytes_up, said, row.arrays
