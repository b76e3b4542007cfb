"""Flower's SuperNode, which notes in a file when its SuperLink has last answered it, and says what
ends one of its threads in one line.

    python -m clients.supernode FILE OPTIONS…

A SuperNode that is refused or cannot connect runs like any other, so that it runs says little.
"""

import sys
import threading
from pathlib import Path
from typing import Any

from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient


def noting(file: Path) -> type[FleetHttpClient]:
    """A client that touches the file at each good answer: messages are asked for every 3 s, and
    while one takes its time there is a heartbeat every 30 s."""

    class Noting(FleetHttpClient):
        def _unary_unary(self, **asked: Any) -> Any:
            answer = super()._unary_unary(**asked)
            file.touch()
            return answer

    return Noting


def say_in_a_line(ended: threading.ExceptHookArgs) -> None:
    """What went wrong in a thread: Flower's heartbeat raises where a key was revoked."""
    said = str(ended.exc_value).partition("\n")[0]
    print(f"{ended.exc_type.__name__}: {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    fleet_http_connection.FleetHttpClient = noting(Path(sys.argv.pop(1)))  # type: ignore[misc]
    threading.excepthook = say_in_a_line
    sys.exit(flower_supernode())
