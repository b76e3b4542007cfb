"""Boxes in network namespaces of this machine, each behind a link of its own that may be weak.

A bridge stands for the server's network; what crosses a box's link is counted by the system. It
needs root, Debian's iproute2, and for weak links a kernel with netem.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fleet import BIN, PROXY, Fleet

from fedspeech.connection import Address, free_port

HOST, NETWORK = "10.77.0.1", "10.77.0"
BRIDGE = "fsbridge"
IP, TC = shutil.which("ip"), shutil.which("tc")
POSSIBLE = os.geteuid() == 0 and IP is not None and TC is not None
NOT_POSSIBLE = "needs root and iproute2"


def ip(*words: str | int) -> None:
    """One command of iproute2. Raises CalledProcessError."""
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


class LinkedFleet(Fleet):
    """A fleet whose boxes reach the door through links; `close` takes the links down too."""

    def __init__(self, folder: Path, boxes: Sequence[str]) -> None:
        super().__init__(folder, boxes, names=["localhost", HOST])
        self.door = Address(HOST, free_port())
        self._ends = {box: f"fs{number}" for number, box in enumerate(boxes)}
        self._take_down()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, (box, end) in enumerate(self._ends.items(), 2):
            self._connect(box, end, f"{NETWORK}.{number}/24")

    def start_proxy(self, part: str = PROXY, **other: str) -> None:
        """Start nginx where the boxes' links end."""
        super().start_proxy(part, **{"LISTEN": str(self.door), **other})

    def _connect(self, box: str, end: str, address: str) -> None:
        space = self.space(box)
        ip("netns", "add", space)
        ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", end, "master", BRIDGE, "up")
        ip("-n", space, "address", "add", address, "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")

    def space(self, box: str) -> str:
        """The namespace of a box."""
        return f"fedspeech-{self._ends[box]}"

    def weaken(self, box: str, *how: str) -> None:
        """Let a link be as netem says, in both directions: `rate 256kbit delay 150ms loss 5%`.

        Raises CalledProcessError where the kernel has no netem.
        """
        netem = ["qdisc", "replace", "dev"]
        for command in (
            ["tc", *netem, self._ends[box], "root", "netem", *how],
            ["ip", "netns", "exec", self.space(box), "tc", *netem, "eth0", "root", "netem", *how],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)

    def cut(self, box: str) -> None:
        """Pull the plug of a link."""
        ip("link", "set", self._ends[box], "down")

    def mend(self, box: str) -> None:
        """Put it in again."""
        ip("link", "set", self._ends[box], "up")

    def counted(self, box: str) -> tuple[int, int]:
        """Bytes that went down to a box and up from it, as its link counts them."""
        statistics = Path("/sys/class/net") / self._ends[box] / "statistics"
        down, up = ((statistics / f"{way}_bytes").read_text() for way in ("tx", "rx"))
        return int(down), int(up)

    def start_box(self, box: str, speech: Path, *options: str) -> None:
        """Start `fedspeech box` behind its link."""
        command = ["ip", "netns", "exec", self.space(box), BIN / "fedspeech", "box"]
        command += ["--server", str(self.door), "--ca", self.ca, "--key", self.key(box)]
        command += ["--speech", speech, "--device", self.folder / "devices" / box]
        self.start(box, [*command, *options])

    def close(self) -> None:
        """End everything."""
        super().close()
        self._take_down()

    def _take_down(self) -> None:
        for box in self._ends:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", self.space(box))
        with suppress(subprocess.CalledProcessError):
            ip("link", "delete", BRIDGE)
