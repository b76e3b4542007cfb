"""A box: Flower's SuperNode, and beside it what answers its messages, for as long as both last."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType

from clients.answering import Answering, die_with_parent, say
from fedspeech import connection, protocol
from fedspeech.device.lock import alone
from fedspeech.finding import Finding

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
QUIET_SECONDS = 30.0
"""Without an answer, until the box looks why; while a message takes its time there is a heartbeat
every 23 s. It looks again when the silence is twice as long."""
REFUSED = 1
"""Flower's status of a SuperNode that could not begin."""
TWICE = (
    "refused  key: registered; another SuperNode with this key was here within a minute: the one "
    "before this, which the server does not know to be gone yet, or that of another box"
)


class Silence:
    """How long a SuperNode has had no answer, by the file that it touches at each; the clock on the
    wall may jump meanwhile."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._since, self._patience, self._seen = time.monotonic(), QUIET_SECONDS, self._touched()

    def is_long(self) -> bool:
        """Whether it has just become so, or twice as long as the last time that this was true."""
        if self._touched() != self._seen:
            self.begin()
        if long := time.monotonic() - self._since >= self._patience:
            self._patience *= 2
        return long

    def _touched(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return 0


class Box:
    """One SuperNode and its messages. `command` starts it, with its runtime at `address`; `folder`
    is the device's. `looked_at` is what it says of its way to the server, where it gets nowhere."""

    def __init__(
        self,
        command: Sequence[str],
        address: str,
        folder: Path,
        looked_at: Callable[[], Iterable[Finding]],
    ) -> None:
        self._command, self._contact = list(command), folder / CONTACT
        self._looked_at, self._silence = looked_at, Silence(self._contact)
        self._looking: BaseProcess | None = None
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
            self._look(refused=self._node.returncode == REFUSED)
            self._node, self._ends, self._due = None, self._ends + 1, time.monotonic() + wait
        if self._node is None and time.monotonic() >= self._due:
            self._node = subprocess.Popen(self._command, preexec_fn=die_with_parent)
            self._silence.begin()
        if self._node is not None and self._silence.is_long():
            self._look(refused=False)

    def _look(self, refused: bool) -> None:
        """Say what is wrong, in a process of its own: a server that does not answer may take half a
        minute, in which this one is to end when it is told so, and to take messages."""
        if self._looking is None or not self._looking.is_alive():
            arguments = self._looked_at, refused
            forks = multiprocessing.get_context("fork")
            self._looking = forks.Process(target=say_why, args=arguments, daemon=True)
            self._looking.start()

    def _end(self) -> None:
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            try:
                self._node.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._node.kill()


def say_why(looked_at: Callable[[], Iterable[Finding]], refused: bool) -> None:
    """What is missing on the way to the server, in the words of `fedspeech doctor --server`; or,
    where a SuperNode was refused and nothing is missing, what is left to explain it."""
    die_with_parent()
    for end in (signal.SIGTERM, signal.SIGINT):  # at once, and without the box's way of ending
        signal.signal(end, signal.SIG_DFL)
    missing = [str(one) for one in looked_at() if one.status == "missing"]
    for line in missing or [TWICE] * refused:
        say(line)


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
    looked_at = partial(connection.findings, connection.address(server), Path(ca), Path(key))
    os.umask(OWNER_ONLY)
    with suppress(KeyboardInterrupt), alone(folder):
        Box(command, f"127.0.0.1:{port}", folder, looked_at).run()
