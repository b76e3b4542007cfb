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
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

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

    def and_(self, other: "Measured") -> "Measured":
        """Both, of one epoch."""
        mine, theirs = astuple(self), astuple(other)
        both = Measured(*(one + another for one, another in zip(mine, theirs, strict=True)))
        return replace(both, most_stale=max(self.most_stale, other.most_stale))


class Spent(NamedTuple):
    """Time of a process; also its clocks."""

    seconds: float = 0.0
    processor: float = 0.0
    """Processor seconds, of all its threads."""

    @classmethod
    def until_now(cls) -> "Spent":
        """What the clocks say."""
        return cls(time.monotonic(), time.process_time())

    def and_(self, other: "Spent") -> "Spent":
        """Both."""
        return Spent(self.seconds + other.seconds, self.processor + other.processor)

    def without(self, other: "Spent") -> "Spent":
        """What is left; from what clocks said then, what was spent since."""
        return Spent(self.seconds - other.seconds, self.processor - other.processor)


class Pace:
    """Rests after what was computed.

    `factor` is how many times slower the learner computes, `share` the most of one processor that
    it takes for all it does; None: whatever there is.
    """

    def __init__(self, factor: float = 1.0, share: float | None = None) -> None:
        self._factor, self._share = factor, share

    def rest(self, computed: Spent, whole: Spent) -> None:
        """After a step that took the whole of this, and this of it for computing.

        What is left of it, talking and waiting, is not slowed.
        """
        own = self._factor * max(computed.seconds, self._at_least(computed))
        until = max(whole.seconds - computed.seconds + own, self._at_least(whole))
        # A sleep of no length would let another process have the processor.
        if (left := until - whole.seconds) > 0:
            time.sleep(left)

    def _at_least(self, spent: Spent) -> float:
        return spent.processor / self._share if self._share is not None else 0.0


class Watch:
    """Collects what a learner measures until it is asked for."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._ready: Spent | None = None
        self._steps, self._waited = Spent(), Spent()
        self._rested: Spent | None = None
        self._lock = threading.Lock()
        self.measured = Measured()

    def take(self) -> Measured:
        """What was measured since the last time."""
        with self._lock:
            found, self.measured = self.measured, Measured()
        return found

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Nothing is computed in the block."""
        started = Spent.until_now()
        yield
        self._waits_since(started)

    @contextmanager
    def computes(self) -> Iterator[None]:
        """A gradient is computed in the block, at the pace of this learner."""
        started, before = self._begin(), self._waited
        yield
        if self._ready is not None:
            self._waits_since(self._ready)
            self._ready = None
        waited = self._waited.without(before)
        computed = Spent.until_now().without(started).without(waited)
        self._rest(computed.and_(self._steps))
        self._steps = Spent()
        self.measured.computing += time.monotonic() - started.seconds - waited.seconds

    @contextmanager
    def steps(self) -> Iterator[None]:
        """The optimizer steps in the block.

        What that takes of the learner's pace it rests after the next gradient: now others may wait
        for the model.
        """
        started = self._begin()
        yield
        spent = Spent.until_now().without(started)
        self._steps = self._steps.and_(spent)
        self.measured.computing += spent.seconds

    def _begin(self) -> Spent:
        now = Spent.until_now()
        self._rested = self._rested or now
        return now

    def _waits_since(self, started: Spent) -> None:
        spent = Spent.until_now().without(started)
        self._waited = self._waited.and_(spent)
        self.measured.waiting += spent.seconds

    def _rest(self, computed: Spent) -> None:
        """At the learner's pace; what its threads do as it rests counts in the next step."""
        assert self._rested is not None
        now = Spent.until_now()
        self._pace.rest(computed, now.without(self._rested))
        self._rested = Spent(time.monotonic(), now.processor)

    def ready(self) -> None:
        """What is computed in the block is there: whatever it still does is waiting."""
        self._ready = Spent.until_now()

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
    many, and less than twice as many. On the processor, of the model's dtype, and so large that the
    distance between two samples is about that between the models.
    """
    values = model.detach()[:: max(1, len(model) // SAMPLES)]
    return values.cpu() * math.sqrt(len(model) / len(values))
