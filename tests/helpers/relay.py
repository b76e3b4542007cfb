"""One direction of a weak link: Ethernet frames from one TAP device to another, late or never.

    python relay.py FROM TO RATE DELAY LOSS NAME

FROM and TO are open file descriptors of TAP devices, RATE is in bits a second, DELAY in seconds,
LOSS a probability; NAME is what the losses are drawn by. It is what netem does, in user space.
"""

import os
import random
import select
import sys
import time
from collections import deque

QUEUE = 1000
"""Frames that wait; as many as netem keeps. More of them are lost."""
MOST = 65536
LOOK_SECONDS = 5.0
"""Between two looks whether somebody still wants the link."""


class Relay:
    """Frames that are under way, with the time at which each is there."""

    def __init__(self, rate: float, delay: float, loss: float, name: str) -> None:
        self._rate, self._delay, self._loss = rate, delay, loss
        self._draw = random.Random(name)
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._free = 0.0
        """When the last frame has left, and the next one can."""

    def take(self, frame: bytes, now: float) -> None:
        """A frame that comes in at a time; it may be lost."""
        if self._draw.random() < self._loss or len(self._under_way) >= QUEUE:
            return
        self._free = max(self._free, now) + 8 * len(frame) / self._rate
        self._under_way.append((self._free + self._delay, frame))

    def due(self, now: float) -> list[bytes]:
        """Frames that are there by then."""
        found = []
        while self._under_way and self._under_way[0][0] <= now:
            found.append(self._under_way.popleft()[1])
        return found

    def seconds(self, now: float) -> float:
        """Until the next one is there, or until somebody looks whether the link is wanted."""
        return max(0.0, self._under_way[0][0] - now) if self._under_way else LOOK_SECONDS


def main(source: int, sink: int, relay: Relay) -> None:
    """For as long as the process is there that has started this one."""
    parent = os.getppid()
    while os.getppid() == parent:
        ready, _, _ = select.select([source], [], [], relay.seconds(time.monotonic()))
        if ready:
            relay.take(os.read(source, MOST), time.monotonic())
        for frame in relay.due(time.monotonic()):
            try:
                os.write(sink, frame)
            except OSError:  # that device is down: the plug is pulled
                continue


if __name__ == "__main__":
    ends, numbers = map(int, sys.argv[1:3]), map(float, sys.argv[3:6])
    main(*ends, Relay(*numbers, name=sys.argv[6]))
