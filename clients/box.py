"""A box: Flower's SuperNode, and beside it what answers its messages, for as long as both last."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType

from clients.answering import Answering, die_with_parent, say
from fedspeech import protocol
from fedspeech.device.lock import alone

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 20.0
"""That the SuperNode may take to end."""
OWNER_ONLY = 0o077
"""The umask: recordings' transcripts, models and keys are the owner's, and nobody else's."""
CONTACT = "contact"
"""File of a device's folder: when its SuperLink has last answered."""
AGAIN_SECONDS = 5.0, 10.0, 20.0
"""Until a SuperNode that has ended is started again: for up to a minute its SuperLink takes it for
the one before, and refuses it."""


class Box:
    """One SuperNode and its messages. `command` starts it, with its runtime at `address`; `folder`
    is the device's."""

    def __init__(self, command: Sequence[str], address: str, folder: Path) -> None:
        self._command, self._contact = list(command), folder / CONTACT
        self._answering = Answering(address, folder)
        self._node: subprocess.Popen[bytes] | None = None
        self._ends = 0
        self._due = 0.0

    def run(self) -> None:
        """Until this process is told to end (SIGTERM, SIGINT). The SuperNode ends with it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        protocol.cut_into_pieces()
        self._answering.tidy()
        self._contact.unlink(missing_ok=True)
        gc.freeze()  # a fork that looks through what was imported would copy it
        waiting = self._answering.client("SuperExec")
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            while True:
                self._keep_alive()
                with suppress(httpx.HTTPError):
                    if token := waiting.AcquireTask(wanted).token:
                        self._ends = 0
                        self._answering.answer(token)
                        continue
                time.sleep(POLL_SECONDS)
        finally:
            waiting.close()
            self._end()

    def _keep_alive(self) -> None:
        if self._node is not None and self._node.poll() is not None:
            wait = AGAIN_SECONDS[min(self._ends, len(AGAIN_SECONDS) - 1)]
            say(f"the SuperNode has ended (status {self._node.returncode}); again in {wait:g} s")
            self._node, self._ends, self._due = None, self._ends + 1, time.monotonic() + wait
        if self._node is None and time.monotonic() >= self._due:
            self._node = subprocess.Popen(self._command, preexec_fn=die_with_parent)

    def _end(self) -> None:
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            try:
                self._node.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._node.kill()


def supernode(
    server: str, ca: str, key: str, port: int, settings: Mapping[str, str | int]
) -> list[str]:
    """The command of a SuperNode whose messages are answered elsewhere.

    `settings` are what its client app finds in `node_config`.
    """
    contact = str(Path(str(settings["device"])) / CONTACT)
    config = " ".join(
        f"{name}={value}" if isinstance(value, int) else f'{name}="{value}"'
        for name, value in settings.items()
    )
    return [
        *(sys.executable, "-P", "-m", "clients.supernode", contact),
        *("--superlink", server, "--root-certificates", ca),
        *("--auth-supernode-private-key", key, "--isolation", "process"),
        *("--host", "127.0.0.1", "--port", str(port), "--node-config", config),
    ]


def run(server: str, ca: str, key: str, port: int, settings: Mapping[str, str | int]) -> None:
    """A box, until it is told to end. Raises as `alone` does."""
    command, folder = supernode(server, ca, key, port, settings), Path(str(settings["device"]))
    os.umask(OWNER_ONLY)
    with suppress(KeyboardInterrupt), alone(folder):
        Box(command, f"127.0.0.1:{port}", folder).run()
