"""Flower's SuperLink, as the connection `boxes`, with more patience for its database.

Boxes that send at once take turns in writing, and by default a turn that does not come within five
seconds fails: on a busy machine an answer was lost by that.
"""

import os
import socket
import sys
from pathlib import Path

from flwr.cli.flower_config import read_flower_config, write_flower_config
from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

CONNECTION = "boxes"
MILLISECONDS = "60000"


def be_patient() -> None:
    """Let every connection to the database that is opened from now on wait for its turn."""
    usual = dict(sql_mixin.SQLITE_PRAGMAS)
    sql_mixin.SQLITE_PRAGMAS = tuple({**usual, "busy_timeout": MILLISECONDS}.items())


def check_free(listen: str) -> int:
    """The port of HOST:PORT, where nobody listens yet; else the process ends with a line."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        sys.exit(f"start-superlink: LISTEN: expected HOST:PORT, found {listen!r}")
    try:
        socket.create_server((host, int(port))).close()
    except OSError as error:
        sys.exit(f"start-superlink: LISTEN: {listen}: {error.strerror or error}")
    return int(port)


def make_known(home: Path, port: int, ca: str) -> None:
    """Name this SuperLink in Flower's configuration; other connections stay what they are."""
    file = home / "config.toml"
    if not file.exists():  # or Flower writes a configuration of its own
        file.write_text(f'[superlink]\ndefault = "{CONNECTION}"\n', encoding="utf-8")
    table, _ = read_flower_config()
    ours = {"address": f"127.0.0.1:{port}", "root-certificates": ca}
    connections = table.setdefault("superlink", {})
    if connections.get(CONNECTION) != ours:
        connections[CONNECTION] = ours
        write_flower_config(table)


if __name__ == "__main__":
    port = check_free(os.environ["LISTEN"])
    make_known(Path(os.environ["FLWR_HOME"]), port, f"{os.environ['KEYS']}/ca.crt")
    be_patient()
    sys.exit(flower_superlink())
