import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import superlink
from flwr.supercore import sql_mixin


def test_the_database_waits_a_minute_for_its_turn_and_is_else_what_flower_wants(monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    superlink.be_patient()
    with closing(sqlite3.connect(":memory:")) as database:
        sql_mixin._set_sqlite_pragmas(database, None)
        asked = ("busy_timeout", "foreign_keys", "synchronous")
        found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]
    assert found == [60_000, 1, 1]


def test_what_boxes_send_nobody_else_may_read(tmp_path):
    """Of a SuperLink whose Python writes but one file."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n: >"$DATA/superlink.db"\n')
    python.chmod(0o755)
    own = {"LISTEN": "127.0.0.1:1", "KEYS": str(tmp_path), "DATA": str(tmp_path / "data")}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**own, "FLWR_HOME": str(tmp_path / "flower"), "PATH": path}
    start = Path(superlink.__file__).with_name("start-superlink")
    subprocess.run([start], env=environment, check=True, umask=0o022)
    assert (tmp_path / "data" / "superlink.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
