"""A SuperLink behind its proxy and SuperNodes beside it, as processes of this machine on loopback.

Parts are started, stopped and killed by their names: `superlink`, `proxy`, and the boxes'. Each has
a Flower home of its own, by which all its processes are known, and a log in a file.
"""

import importlib.machinery
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

import registration

from fedspeech import connection
from fedspeech.connection import Address, free_port

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
SUPERLINK, PROXY, OPERATOR = "superlink", "proxy", "operator"
CONNECTION = "boxes"
"""An operator's Flower has this name for the SuperLink: `fedspeech run … --on deployment boxes`."""
SECONDS = 120.0
"""That something may take on a busy machine."""
SIGNED = {"flwr-public-key": "a", "flwr-timestamp": "b", "flwr-signature": "c"}
"""With this the door takes somebody for a SuperNode; the SuperLink does not."""
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
NO_NGINX = "nginx is not installed (Debian: nginx-light)"


def make_keys() -> ModuleType:
    """`docker/make-keys`, imported."""
    loader = importlib.machinery.SourceFileLoader("make_keys", str(DOCKER / "make-keys"))
    spec = importlib.util.spec_from_loader("make_keys", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Fleet:
    """The parts of a deployment in one folder; `close` ends all that is left of them.

    Boxes have keys from the beginning, and are registered once the SuperLink runs (`register`).
    """

    def __init__(
        self, folder: Path, boxes: Sequence[str] = (), names: Sequence[str] = ("localhost",)
    ) -> None:
        self.folder, self.boxes = folder, list(boxes)
        self.door, self.health = (Address("localhost", free_port()) for _ in range(2))
        self.superlink = Address("127.0.0.1", free_port())
        """Where the SuperLink listens, for the operator and the proxy; boxes come by the door."""
        self.keys = folder / "keys"
        self.ca = self.keys / "ca.crt"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        servers = [word for name in names for word in ("--server", name)]
        assert make_keys().main(["make", "--keys", str(self.keys), *servers, *boxes]) == 0

    def key(self, box: str) -> Path:
        """The private key of a box."""
        return self.keys / "boxes" / box / "box.key"

    def environment(self, part: str = OPERATOR) -> dict[str, str]:
        """Of a part's processes; an operator's Flower knows the SuperLink as `boxes`."""
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(self._home(part)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def _home(self, part: str) -> Path:
        path = self.folder / "homes" / part
        path.mkdir(parents=True, exist_ok=True)
        return path

    # Starting and ending.

    def start(self, part: str, command: Sequence[str | Path], **environment: str) -> None:
        """Start any command as a part, in a process group of its own; its log is continued."""
        assert part not in self._running, f"{part} runs already"
        with self._log(part).open("ab") as log:
            self._running[part] = subprocess.Popen(
                list(map(str, command)),
                cwd=self.folder,
                env={**self.environment(part), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def start_superlink(self, *options: str) -> None:
        """Start the SuperLink as a container does, until it answers; its database survives it."""
        environment = {"KEYS": str(self.keys), "DATA": str(self.folder / "data")}
        environment["LISTEN"] = str(self.superlink)
        self.start(SUPERLINK, [DOCKER / "start-superlink", *options], **environment)
        self.wait(SUPERLINK, lambda: self._answers(self.superlink))
        shutil.copy(self._home(SUPERLINK) / "config.toml", self._home(OPERATOR))

    def start_proxy(self, part: str = PROXY, **other: str) -> None:
        """Start nginx as a container does, until it listens; `other` than its environment."""
        environment = {
            "LISTEN": f"127.0.0.1:{self.door.port}",
            "HEALTH": f"127.0.0.1:{self.health.port}",
            "SUPERLINK": str(self.superlink),
            "KEYS": str(self.keys),
            "RUN": str(self.folder / part),
            **other,
        }
        # As in a container nobody is root; pytest's folders are for their owner alone.
        as_one = ["-g", "user root;"] if os.geteuid() == 0 else []
        self.start(part, [DOCKER / "start-proxy", *as_one], **environment)
        self.wait(part, lambda: listens(connection.address(environment["LISTEN"])))

    def start_supernode(
        self,
        part: str,
        config: str = "",
        executor: Sequence[str | Path] = (),
        *,
        key: Path | None = None,
        options: Sequence[str | Path] | None = None,
        door: Address | None = None,
    ) -> None:
        """Start a box's SuperNode with this node configuration; it is not waited for.

        An executor is the command of the process that runs its client app; `{runtime}` in it is the
        SuperNode's address for it. Without one, Flower starts processes of its own. `key` is used
        instead of the box's, `options` instead of key and CA, `door` instead of the fleet's.
        """
        runtime = f"127.0.0.1:{(port := free_port())}"
        if options is None:
            options = ["--root-certificates", self.ca]
            options += ["--auth-supernode-private-key", key or self.key(part)]
        command: list[str | Path] = ["flower-supernode", "--superlink", str(door or self.door)]
        command += ["--port", str(port), *options]
        command += ["--node-config", config] if config else []
        command += ["--isolation", "process"] if executor else []
        self.start(part, command)
        if executor:
            filled = [str(word).replace("{runtime}", runtime) for word in executor]
            self.start(f"{part}.client", filled)

    def start_box(
        self, box: str, speech: Path, *options: str, inside: Sequence[str | Path] = ()
    ) -> None:
        """Start `fedspeech box`, which starts its SuperNode; its models are in `devices/BOX`.

        `inside` is a command that starts another one somewhere.
        """
        command = [*inside, BIN / "fedspeech", "box", "--server", str(self.door), "--ca", self.ca]
        command += ["--key", self.key(box), "--speech", speech]
        self.start(box, [*command, "--device", self.folder / "devices" / box, *options])

    def stop(self, part: str) -> int:
        """End a part as an operator does, and wait for it; its status."""
        return self._end(part, signal.SIGTERM)

    def kill(self, part: str) -> int:
        """End a part as a power cut does, with whatever it has started; its status."""
        self._kill_all(part)
        return self._end(part, signal.SIGKILL)

    def _kill_all(self, part: str) -> None:
        for number in self.processes(part):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def _end(self, part: str, how: signal.Signals) -> int:
        process = self._running.pop(part)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            return process.wait(SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End everything."""
        for part in [*self._running]:
            self.kill(part)
        for home in self.folder.glob("homes/*"):
            self._kill_all(home.name)

    # Looking.

    def log(self, part: str) -> str:
        """All that a part has said so far."""
        path = self._log(part)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log(self, part: str) -> Path:
        path = self.folder / "logs" / f"{part}.log"
        path.parent.mkdir(exist_ok=True)
        return path

    def processes(self, part: str) -> dict[int, str]:
        """The processes that a part consists of, and their command lines."""
        mark = f"FLWR_HOME={self._home(part)}".encode()
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    command = (path / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(path.name)] = command.decode(errors="replace").strip()
        return found

    def wait(self, part: str, until: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """Wait until something is so, and give it; fails with the log where the part ends first."""
        deadline = time.monotonic() + seconds
        while not (found := until()):
            running = self._running.get(part)
            ended = running is not None and running.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"took more than {seconds:g} s"
                raise AssertionError(f"{part} {what}:\n{self.log(part)[-4000:]}")
            time.sleep(0.2)
        return found

    def status(self, part: str) -> int | None:
        """Of a part that has ended by itself; None where it runs."""
        return self._running[part].poll()

    def wait_for_end(self, part: str, seconds: float = SECONDS) -> int:
        """Wait until a part ends by itself; its status."""
        status = self._running[part].wait(seconds)
        del self._running[part]
        return status

    def _answers(self, to: Address) -> bool:
        try:
            return connection.ask(to, self.trust(), "GET", "/health").status == 200
        except (OSError, HTTPException):
            return False

    def trust(self) -> ssl.SSLContext:
        """TLS as boxes have it."""
        return ssl.create_default_context(cafile=self.ca)

    # Who is trusted, and who is there.

    def register(self, *boxes: str) -> None:
        """Register these boxes, or all."""
        public = {box: self.keys / "public" / f"{box}.pub" for box in boxes or self.boxes}
        list(registration.register(str(self.superlink), self.ca, public))

    def revoke(self, box: str) -> None:
        """Let a box's key count no more."""
        list(registration.revoke(str(self.superlink), self.ca, box))

    def nodes(self) -> Mapping[str, tuple[int, str]]:
        """The node of each registered box and its status in Flower's words, such as `online`."""
        with registration.control(str(self.superlink), self.ca) as control:
            return {n.name: (n.node_id, n.status) for n in registration.nodes(control)}

    def wait_until_online(self, *boxes: str) -> None:
        """Wait for the SuperNodes of these boxes, or of all."""
        for box in boxes or self.boxes:
            self.wait(box, lambda box=box: self.nodes()[box][1] == "online")


def listens(to: Address) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(to, 1).close()
    except OSError:
        return False
    return True


def opened(folder: Path, boxes: Sequence[str] = (), others: Sequence[str] = ()) -> Iterator[Fleet]:
    """For fixtures: a fleet whose SuperLink and proxy run and whose boxes are registered; others
    have keys and nothing else."""
    fleet = Fleet(folder, [*boxes, *others])
    try:
        fleet.start_superlink()
        fleet.start_proxy()
        fleet.register(*boxes)
        yield fleet
    finally:
        fleet.close()
