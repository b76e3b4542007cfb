import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from fedspeech.errors import RunError
from server import ledger
from server.journal import Journal, Row

ROW = Row(
    id="a1",
    position=2,
    round=1,
    speaker="s2",
    kind="train.install",
    bytes_down=70,
    bytes_up=5,
    answer={"configs": {"text": {"json": '{"ä": 0.1}'}}, "metrics": {}},
    arrays="answers/a1.safetensors",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def test_a_row_comes_back_in_another_process(path):
    Journal(path).add(ROW)
    again = Journal(path)
    assert again.get("a1") == ROW
    assert again.get("a2") is None
    changed = replace(ROW, bytes_up=6)
    again.add(changed)
    assert Journal(path).get("a1") == changed


def test_the_ledger_is_in_the_order_of_asking(path, tmp_path):
    journal = Journal(path)
    asked = [(1, 2, "s2"), (0, 0, "s2"), (1, 10, "s1"), (0, 1, "s1"), (0, 0, "s1"), (1, 1, "s3")]
    for number, (round, position, speaker) in enumerate(asked):
        journal.add(replace(ROW, id=f"m{number}", round=round, position=position, speaker=speaker))
    order = [(round, speaker) for round, _, speaker in sorted(asked)]
    rows = list(journal.ledger())
    assert [(round, speaker) for round, speaker, *_ in rows[::2]] == order
    assert [row[2:] for row in rows] == [
        ("down", "train.install", 70),
        ("up", "train.install", 5),
    ] * len(asked)
    assert ledger.write(tmp_path / "ledger.csv", journal) == {"down": 6 * 70, "up": 6 * 5}
    lines = (tmp_path / "ledger.csv").read_text().splitlines()
    assert lines[0] == "round,speaker,direction,kind,bytes"
    assert lines[1] == "0,s1,down,train.install,70"
    assert len(lines) == 1 + 2 * 6


def test_the_last_round_that_ended(path):
    journal = Journal(path)
    assert journal.last_round() is None
    journal.end_round(1, {"round": 1, "active": ["s1"]})
    journal.end_round(2, {"round": 2, "active": []})
    assert Journal(path).last_round() == {"round": 2, "active": []}
    assert Journal(path).ended_rounds() == {
        1: {"round": 1, "active": ["s1"]},
        2: {"round": 2, "active": []},
    }


KILLED = """
import os, signal, sys
from server.journal import Journal, Row
journal = Journal(sys.argv[1])
for number in range(100):
    journal.add(Row(f"m{number}", number, 1, "s", "k", 1, 1, {"n": number}))
    print(number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_added_is_there_after_a_kill(path):
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()[-1] == "99"
    journal = Journal(path)
    assert [journal.get(f"m{n}").answer for n in range(100)] == [{"n": n} for n in range(100)]


def test_rows_that_are_added_together_are_there_together_or_not_at_all(path):
    """The third of them cannot be written: neither are the others."""
    journal = Journal(path)
    rows = [replace(ROW, id=f"m{number}") for number in range(3)]
    broken = replace(ROW, id="m2", position=object())
    with pytest.raises(RunError, match="cannot write the journal"):
        journal.add(*rows[:2], broken)
    assert list(journal.ledger()) == []
    journal.add(*rows)
    assert [Journal(path).get(row.id) for row in rows] == rows


def test_a_file_that_is_no_journal_is_named(path):
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(RunError, match=r"journal\.sqlite: the journal is damaged"):
        Journal(path)


def test_a_folder_that_is_not_there_is_no_damage(tmp_path):
    with pytest.raises(RunError, match="cannot open the journal: unable to open database file"):
        Journal(tmp_path / "nowhere" / "journal.sqlite")


def test_a_journal_that_cannot_be_written_says_so(path):
    journal = Journal(path)
    journal._database.execute("PRAGMA max_page_count = 4")  # as if the disk were full
    with pytest.raises(RunError, match="cannot write the journal: database or disk is full"):
        for number in range(200):
            journal.add(replace(ROW, id=f"m{number}", answer={"x": "y" * 500}))
    kept = Journal(path)
    assert kept.get("m0") is not None


class Busy:
    """A database that another process holds."""

    def execute(self, *query):
        raise sqlite3.OperationalError("database is locked")


def test_what_can_be_read_another_time_is_no_damage(path, monkeypatch):
    journal = Journal(path)
    journal.close()
    monkeypatch.setattr(journal, "_database", Busy())
    with pytest.raises(RunError) as told:
        journal.get("a1")
    assert str(told.value) == f"{path}: cannot read the journal: database is locked"
