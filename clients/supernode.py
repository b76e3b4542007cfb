"""Flower's SuperNode, which notes in a file when its SuperLink has last answered it.

    python -m clients.supernode FILE OPTIONS…

A SuperNode that is refused or cannot connect runs like any other, so that it runs says little.
"""

import sys
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


if __name__ == "__main__":
    fleet_http_connection.FleetHttpClient = noting(Path(sys.argv.pop(1)))  # type: ignore[misc]
    sys.exit(flower_supernode())
