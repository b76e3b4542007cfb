import os
import socket
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
import superlink
from flwr.supercore import sql_mixin

SCRIPT = Path(superlink.__file__).with_name("start-superlink")
BOXES = {"address": "127.0.0.1:8000", "root-certificates": "keys/ca.crt"}
OTHERS = """
[superlink]
default = "home"

[superlink.home]
address = "192.0.2.1:8000"

[superlink.boxes]
address = "127.0.0.1:7000"

[superlink.lab]
options.num-supernodes = 4
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def connections(home):
    return tomllib.loads((home / "config.toml").read_text())["superlink"]


def test_a_new_configuration_knows_the_superlink(home):
    superlink.make_known(home, 8000, "keys/ca.crt")
    assert connections(home) == {"default": "boxes", "boxes": BOXES}


def test_other_connections_stay_what_they_are(home):
    (home / "config.toml").write_text(OTHERS)
    superlink.make_known(home, 8000, "keys/ca.crt")
    before = tomllib.loads(OTHERS)["superlink"]
    assert connections(home) == {**before, "boxes": BOXES}


@pytest.mark.parametrize(
    ("listen", "told"),
    [
        ("127.0.0.1", "expected HOST:PORT, found '127.0.0.1'"),
        ("127.0.0.1:http", "expected HOST:PORT, found '127.0.0.1:http'"),
        ("127.0.0.1:{taken}", "Address already in use"),
    ],
)
def test_what_cannot_start_changes_no_configuration(home, tmp_path, listen, told):
    (home / "config.toml").write_text(OTHERS)
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = listen.format(taken=other.getsockname()[1])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        places = {"LISTEN": where, "KEYS": "keys", "DATA": str(tmp_path / "data"), "PATH": path}
        done = subprocess.run(
            [SCRIPT], env={**os.environ, **places}, capture_output=True, text=True, timeout=60
        )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("start-superlink: LISTEN: ") and told in line
    assert (home / "config.toml").read_text() == OTHERS


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
