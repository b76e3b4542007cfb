"""What a learner measures of itself, step by step: computing, waiting, bytes, staleness, how far
other models are from its own; its pace.

A learner can be made slower, and held to its share of a processor, so that a straggler and many
learners on few processors behave as they would on machines of their own.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SAMPLES = 2**14
"""Values of a model by which it is told how far another one is: all of them would take as long as
averaging them."""


@dataclass
class Measured:
    """Of one learner in one epoch."""

    utterances: int = 0
    loss: float = 0.0
    """Summed over its utterances, in nats."""
    updates: int = 0
    computing: float = 0.0
    """Seconds; what a slowed learner rests counts as well."""
    waiting: float = 0.0
    """Seconds in which it could do nothing until others did something."""
    bytes: int = 0
    """Sent by it. Of a sum over n learners, 2 (n - 1) / n of its size, as in a ring."""
    staleness: int = 0
    """Summed over its updates: how often others had changed the model in between."""
    most_stale: int = 0
    square: float = 0.0
    """Of the distance between its model and one that it met, summed over these."""
    met: int = 0


class Pace:
    """Rests after what was computed.

    `factor` is how many times slower the learner is made, `share` the most of one processor that it
    takes; None: whatever there is.
    """

    def __init__(self, factor: float = 1.0, share: float | None = None) -> None:
        self._factor, self._share = factor, share

    def rest(self, seconds: float, processor_seconds: float) -> None:
        """After so many seconds, in which processors were taken for so many."""
        least = processor_seconds / self._share if self._share is not None else 0.0
        # A sleep of no length would let another process have the processor.
        if (left := self._factor * max(seconds, least) - seconds) > 0:
            time.sleep(left)


class Watch:
    """Collects what a learner measures until it is asked for."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._ready: float | None = None
        self._steps = 0.0, 0.0
        self._lock = threading.Lock()
        self.measured = Measured()

    def take(self) -> Measured:
        """What was measured since the last time."""
        found, self.measured = self.measured, Measured()
        return found

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Nothing is computed in the block."""
        started = time.monotonic()
        yield
        self.measured.waiting += time.monotonic() - started

    @contextmanager
    def computes(self) -> Iterator[None]:
        """A gradient is computed in the block, at the pace of this learner."""
        started, waited = time.monotonic(), self.measured.waiting
        taken = time.process_time()
        yield
        if self._ready is not None:
            self.measured.waiting += time.monotonic() - self._ready
            self._ready = None
        (before, taken_before), self._steps = self._steps, (0.0, 0.0)
        seconds = time.monotonic() - started - (self.measured.waiting - waited)
        self._pace.rest(before + seconds, taken_before + time.process_time() - taken)
        waited = self.measured.waiting - waited
        self.measured.computing += time.monotonic() - started - waited

    @contextmanager
    def steps(self) -> Iterator[None]:
        """The optimizer steps in the block.

        What that takes of the learner's pace it rests after the next gradient: now others may wait
        for the model.
        """
        started, taken = time.monotonic(), time.process_time()
        yield
        seconds = time.monotonic() - started
        self._steps = self._steps[0] + seconds, self._steps[1] + time.process_time() - taken
        self.measured.computing += seconds

    def ready(self) -> None:
        """What is computed in the block is there: whatever it still does is waiting."""
        self._ready = time.monotonic()

    def learned(self, utterances: int, loss: float) -> None:
        """A part is done, with its summed loss."""
        self.measured.updates += 1
        self.measured.utterances += utterances
        self.measured.loss += loss

    def sent(self, size: int) -> None:
        """So many bytes went to another learner; from any thread."""
        with self._lock:
            self.measured.bytes += size

    def stale(self, updates: int) -> None:
        """The model was changed so often by others before a gradient of it counted."""
        self.measured.staleness += updates
        self.measured.most_stale = max(self.measured.most_stale, updates)

    def met(self, own: torch.Tensor, other: torch.Tensor) -> None:
        """Samples of this learner's model, and of one that it averages with or that it takes."""
        self.measured.square += float(torch.dist(own, other)) ** 2
        self.measured.met += 1


def sampled(model: torch.Tensor) -> torch.Tensor:
    """Values of a model (parameters,), evenly spaced: at least `SAMPLES` of them, if it has so
    many, and less than twice as many. On the processor, and so large that the distance between two
    samples is about that between the models.
    """
    values = model.detach()[:: max(1, len(model) // SAMPLES)]
    return values.cpu() * math.sqrt(len(model) / len(values))
