"""Boxes in network namespaces of this machine, each behind a link of its own that may be weak.

A bridge stands for the server's network; what crosses a box's link is counted by the system. It
needs root and Debian's iproute2. Links are weakened by the kernel's netem; where it has none, by
TAP devices between which processes carry frames (`relay.py`).
"""

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import relay
from fleet import PROXY, Fleet

from fedspeech.connection import Address, free_port

HOST, NETWORK = "10.77.0.1", "10.77.0"
BRIDGE = "fsbridge"
IP, TC = shutil.which("ip"), shutil.which("tc")
POSSIBLE = os.geteuid() == 0 and IP is not None and TC is not None
NOT_POSSIBLE = "needs root and iproute2"
TUN = "/dev/net/tun"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
"""Linux's <linux/if_tun.h>."""


class Weak(NamedTuple):
    """Of a link in each direction: bits a second, seconds, and the probability of a loss."""

    rate: float
    delay: float
    loss: float


def ip(*words: str | int) -> None:
    """One command of iproute2. Raises CalledProcessError."""
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


@cache
def has_netem() -> bool:
    """Whether this kernel can weaken a link by itself."""
    space = "fedspeech-netem"
    try:
        ip("netns", "add", space)
        _netem(space, "lo", Weak(1e6, 0.001, 0.0))
    except subprocess.CalledProcessError:
        return False
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "delete", space)
    return True


def _netem(space: str | None, device: str, how: Weak) -> None:
    words = ["qdisc", "replace", "dev", device, "root", "netem", "rate", f"{how.rate:.0f}bit"]
    words += ["delay", f"{1000 * how.delay:g}ms", "loss", f"{100 * how.loss:g}%"]
    inside = ["ip", "netns", "exec", space] if space else []
    subprocess.run([*inside, "tc", *words], check=True, capture_output=True, text=True)


def tap(name: str) -> int:
    """A new TAP device in this namespace; it lasts as long as the descriptor is open."""
    end = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


class LinkedFleet(Fleet):
    """A fleet whose boxes reach the door through links; `close` takes the links down too."""

    def __init__(self, folder: Path, boxes: Sequence[str]) -> None:
        super().__init__(folder, boxes, names=["localhost", HOST])
        self.door = Address(HOST, free_port())
        self._ends = {box: f"fs{number}" for number, box in enumerate(boxes)}
        self._relays: list[subprocess.Popen[bytes]] = []
        self._take_down()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        self._addresses = {box: f"{NETWORK}.{i}/24" for i, box in enumerate(boxes, 2)}
        for box, end in self._ends.items():
            self._connect(box, end, self._addresses[box])

    def start_proxy(self, part: str = PROXY, **other: str) -> None:
        """Start nginx where the boxes' links end."""
        super().start_proxy(part, **{"LISTEN": str(self.door), **other})

    def _connect(self, box: str, end: str, address: str) -> None:
        space = self.space(box)
        ip("netns", "add", space)
        ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", space, "link", "set", "lo", "up")
        self._settle(box, address)

    def _settle(self, box: str, address: str) -> None:
        end, space = self._ends[box], self.space(box)
        ip("link", "set", end, "master", BRIDGE, "up")
        ip("-n", space, "address", "add", address, "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")

    def space(self, box: str) -> str:
        """The namespace of a box."""
        return f"fedspeech-{self._ends[box]}"

    def weaken(self, box: str, how: Weak) -> None:
        """Let a link be as weak as that in both directions, before its box is started."""
        if has_netem():
            _netem(None, self._ends[box], how)
            _netem(self.space(box), "eth0", how)
        else:
            self._relay(box, how)

    def _relay(self, box: str, how: Weak) -> None:
        """Put another link in its place, whose frames processes carry."""
        end, space = self._ends[box], self.space(box)
        ip("link", "delete", end)
        here, there = tap(end), tap(f"{end}-box")
        ip("link", "set", f"{end}-box", "netns", space, "name", "eth0")
        self._settle(box, self._addresses[box])
        for source, sink in ((here, there), (there, here)):
            words = [relay.__file__, source, sink, *how, f"{box}, {source == here}"]
            command = [sys.executable, "-S", "-E", *map(str, words)]
            self._relays.append(subprocess.Popen(command, pass_fds=(here, there)))
        os.close(here)
        os.close(there)

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

    def start_box(
        self, box: str, speech: Path, *options: str, inside: Sequence[str | Path] = ()
    ) -> None:
        """Start `fedspeech box` behind its link."""
        behind = ["ip", "netns", "exec", self.space(box), *inside]
        super().start_box(box, speech, *options, inside=behind)

    def close(self) -> None:
        """End everything."""
        super().close()
        for process in self._relays:
            process.kill()
            process.wait()
        self._take_down()

    def _take_down(self) -> None:
        for box in self._ends:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", self.space(box))
        with suppress(subprocess.CalledProcessError):
            ip("link", "delete", BRIDGE)
