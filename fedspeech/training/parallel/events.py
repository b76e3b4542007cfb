"""A discrete-event simulation: time goes from event to event, in a queue.

What takes its turns in simulated time is a process: a generator that yields the signals for which
it waits. Nothing here is random, and events at the same time happen in the order in which they were
planned, so that the same processes always take the same times.
"""

import heapq
import itertools
from collections.abc import Callable, Generator

Process = Generator["Signal", None, None]
NOTHING_LEFT = 1e-9
"""Share of a job below which it is done: sums of floats do not end at zero."""


class Signal:
    """Happens once; processes that wait for it go on then."""

    def __init__(self) -> None:
        self.happened = False
        self._waiting: list[Process] = []

    def happen(self) -> None:
        """Let those who wait go on, in the order in which they came."""
        self.happened = True
        waiting, self._waiting = self._waiting, []
        for process in waiting:
            _go_on(process)

    def wakes(self, process: Process) -> None:
        """The process goes on when this happens."""
        self._waiting.append(process)


def _go_on(process: Process) -> None:
    for signal in process:
        if not signal.happened:
            signal.wakes(process)
            return


class Clock:
    """Simulated time, in seconds, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Signal]] = []
        self._count = itertools.count()

    def after(self, seconds: float) -> Signal:
        """What happens in so many seconds."""
        signal = Signal()
        heapq.heappush(self._queue, (self.now + seconds, next(self._count), signal))
        return signal

    def start(self, process: Process) -> None:
        """Begin a process now."""
        _go_on(process)

    def run(self) -> None:
        """Go on until nothing more happens."""
        while self._queue:
            self.now, _, signal = heapq.heappop(self._queue)
            signal.happen()


class Shared:
    """What is shared evenly by all jobs at a time: processors, or a link.

    `capacity` says how much work it does in a second for so many jobs at a time.
    """

    def __init__(self, clock: Clock, capacity: Callable[[int], float]) -> None:
        self._clock, self._capacity = clock, capacity
        self._left: dict[Signal, float] = {}
        self._wholes: dict[Signal, float] = {}
        self._since = 0.0
        self._changes = 0

    def work(self, amount: float) -> Signal:
        """Happens when so much work is done."""
        self._pass_time()
        job = Signal()
        self._left[job] = self._wholes[job] = amount
        self._plan()
        return job

    @property
    def _rate(self) -> float:
        jobs = max(1, len(self._left))
        return self._capacity(jobs) / jobs

    def _pass_time(self) -> None:
        seconds = self._clock.now - self._since
        self._since = self._clock.now
        for job in self._left if seconds else ():
            self._left[job] -= self._rate * seconds

    def _plan(self) -> None:
        """Wake up when the next job is done, unless another one comes before."""
        self._changes += 1
        if self._left:
            self._clock.start(self._finish(self._changes))

    def _finish(self, change: int) -> Process:
        yield self._clock.after(max(0.0, min(self._left.values())) / self._rate)
        if change != self._changes:
            return
        self._pass_time()
        least = min(self._left.values())
        done = [
            j for j, left in self._left.items() if left - least <= NOTHING_LEFT * self._wholes[j]
        ]
        for job in done:
            del self._left[job], self._wholes[job]
        self._plan()
        for job in done:
            job.happen()
