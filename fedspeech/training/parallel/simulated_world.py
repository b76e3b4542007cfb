"""What a simulation of many learners is made of: their processors, their links, their batches."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedspeech import seeding
from fedspeech.training.parallel.events import Clock, Process, Shared, Signal

LEAST = 50
"""Parts that a learner has on the mean where each is taken by whoever comes first: the last one
ends up to a part after the first one, which is to be little beside all of them."""
LITTLE = 1e-6
"""Batches that are none: floats do not divide evenly."""


class Link(NamedTuple):
    """What one learner sends over, and at the same time receives over."""

    bandwidth: float
    """Bytes in a second, each way."""
    latency: float
    """Seconds until what has left one end is at the other."""
    work: float = 0.0
    """Processor seconds that a byte takes, where learners share processors."""
    busy: float | None = None
    """The latency of small messages between pieces of computing: also who is ready first waits, and
    who is woken needs a processor. None: `latency`."""
    beside: float | None = None
    """The latency of a message while others compute, who share processors with those that talk: it
    is that of a server's messages there. None: `latency`."""


class Network(NamedTuple):
    """The links of learners; those with neighbouring numbers are in one node."""

    within: Link
    between: Link | None = None
    """Between learners of different nodes; None: as within."""
    node_size: int = 1

    @property
    def outside(self) -> Link:
        """From a learner to who is in no node, as a parameter server is."""
        return self.between or self.within

    def link(self, one: int, other: int) -> Link:
        """What two learners talk over."""
        return self.outside if self.apart(one, other) else self.within

    def apart(self, one: int, other: int) -> bool:
        """Whether they are in two nodes."""
        return one // self.node_size != other // self.node_size


class Checkpoint(NamedTuple):
    """What a learner does at the end of an epoch, and beside the next one."""

    copying: float
    """Seconds until it goes on."""
    work: float
    """Processor seconds of the writing."""
    seconds: float
    """Of the writing, where nobody disturbs it."""


@dataclass(frozen=True)
class Case:
    """What is simulated."""

    method: str
    """As settings name it."""
    learners: int
    seconds: Sequence[float]
    """Measured, of one learner's batches where it has the machine for itself; each simulated batch
    takes one of them by chance, as `World.batches` says."""
    batches: float
    """In an epoch, of all learners together, who share each joined batch evenly: the last one has
    what is left."""
    size: float
    """Bytes of a model, or of a gradient."""
    network: Network
    frames: Sequence[int] = ()
    """Of each of these batches; none: all have as many."""
    slowed: Sequence[float] = ()
    """How many times slower each learner is; none: all as measured."""
    together: Sequence[float] = ()
    """What 1, 2, ... learners that compute at a time do in a second all together, where one alone
    does 1; more of them share what the last ones do. A learner that waits or rests lends its share.
    Empty: each has a machine of its own."""
    checkpoint: Checkpoint | None = None
    one_writes: bool = False
    """Whether the first learner alone keeps checkpoints."""
    step: float = 0.0
    """Processor seconds of an optimizer's step, which are in those of a batch. A parameter server
    takes it for its learners."""
    statistics: int = 0
    """Small tensors gathered in a step of `allreduce`, and inside nodes: for batch statistics."""
    node_size: int = 2
    """Learners in a node of `hierarchical`."""
    block: int = 8
    """Batches in a block of `bmuf`."""
    epochs: int = 1
    """That are simulated at least; more where learners take too few parts in them."""
    seed: int = 0


class World:
    """Learners, their processors and their links, while a case is simulated."""

    def __init__(self, case: Case) -> None:
        every = range(case.learners)
        self.case, self.clock = case, Clock()
        self.computing, self.ended = [0.0] * case.learners, [0.0] * case.learners
        self.done = [0.0] * case.learners
        # The server has one link, which carries as much each way.
        self._pulls = Shared(self.clock, lambda _: case.network.outside.bandwidth)
        self._pushes = Shared(self.clock, lambda _: case.network.outside.bandwidth)
        self._last_step: Signal | None = None
        self._epoch = shares_of_an_epoch(case.batches / case.learners)
        self._taken = 0
        self._cores = Shared(self.clock, self._together)
        self._begun = [0] * case.learners
        self._writing: dict[int, Signal] = {}
        self._for_frames, self._beside = for_its_frames(case.seconds, case.frames)
        self.batches = [self._drawn(learner) for learner in every]
        """Seconds of each learner's batches. The parts of a joined batch are of like lengths: what
        a batch takes for its frames is drawn once for all learners, and for each by itself what it
        takes longer, or less, than others with as many."""
        self._free: dict[tuple[int, bool], float] = defaultdict(float)
        self._shares: dict[tuple[int, int], float] = {}
        self._arrivals: dict[Hashable, Signal] = defaultdict(Signal)

    def parts(self, steps: int = 1) -> Iterator[float]:
        """Of each learner where all have as many: which share of a whole batch each part is; so
        many steps at a time.
        """
        whole = len(self._epoch) * self.case.epochs
        return (self._share(step) for step in range(math.ceil(whole / steps) * steps))

    def _share(self, step: int) -> float:
        return self._epoch[step % len(self._epoch)]

    def take(self, together: int = 1) -> float:
        """Which share of a whole batch the next part is, for whoever comes first, who has taken it
        then, or so many learners as many parts; 0 where none is left.
        """
        number, self._taken = self._taken, self._taken + together
        epochs = max(self.case.epochs, math.ceil(LEAST / len(self._epoch)))
        left = self._taken <= epochs * len(self._epoch) * self.case.learners
        return self._share(number // self.case.learners) if left else 0.0

    def take_together(self, node: int, step: int, size: int) -> float:
        """As `take`, for all learners of a node, in their common step."""
        if (node, step) not in self._shares:
            self._shares[node, step] = self.take(size)
        return self._shares[node, step]

    def aside(self, process: Process) -> Signal:
        """Start a process beside the learner's own; what happens when it has ended."""
        ended = Signal()

        def whole() -> Process:
            yield from process
            ended.happen()

        self.clock.start(whole())
        return ended

    def compute(self, me: int, share: float = 1.0, steps: bool = True) -> Process:
        """This share of a batch, with the optimizer's step, which is as long after any share, or
        without; who is slowed rests after it, which counts as computing.
        """
        yield from self._keep(me)
        started = self.clock.now
        gradient = max(0.0, next(self.batches[me]) - self.case.step)
        yield self._cores.work(share * gradient + (self.case.step if steps else 0.0))
        slowed = self.case.slowed[me] if self.case.slowed else 1.0
        yield self.clock.after((slowed - 1) * (self.clock.now - started))
        self.computing[me] += self.clock.now - started
        self.done[me] += share

    def _keep(self, me: int) -> Process:
        """The checkpoint of the epoch before, where this batch begins one: also where it is the
        first, so that all epochs are like those in the middle of a training.
        """
        over = sum(self.done) + LITTLE >= self._begun[me] * self.case.batches
        if self.case.checkpoint is None or not over:
            return
        self._begun[me] += 1
        if me and self.case.one_writes:
            return
        if me in self._writing:
            yield self._writing[me]
        yield self._cores.work(self.case.checkpoint.copying)
        self._writing[me] = self.aside(self._write(self.case.checkpoint))

    def _write(self, checkpoint: Checkpoint) -> Process:
        yield self._cores.work(checkpoint.work)
        yield self.clock.after(max(0.0, checkpoint.seconds - checkpoint.work))

    def send(self, me: int, to: int, size: float, about: Hashable) -> None:
        """Send a message, after those that this learner has sent over the same link before: that
        inside its node, or that to all others.
        """
        link, way = self._way(me, to)
        self._free[way] = max(self._free[way], self.clock.now) + size / link.bandwidth
        when = self._free[way] + link.latency
        self.clock.start(self._deliver(when, self._worked(size, link), (me, to, about)))

    def _worked(self, size: float, link: Link) -> Signal | None:
        """Happens when processors have done their part of a message, where they have one."""
        return self._cores.work(size * link.work) if self.case.together and link.work else None

    def sent(self, me: int, to: int) -> Signal:
        """Happens when all that this learner sends over the link to another one has left it."""
        _, way = self._way(me, to)
        return self.clock.after(max(0.0, self._free[way] - self.clock.now))

    def _way(self, me: int, to: int) -> tuple[Link, tuple[int, bool]]:
        network = self.case.network
        return network.link(me, to), (me, network.apart(me, to))

    def receive(self, me: int, of: int, about: Hashable) -> Process:
        """Wait for a message."""
        yield self._arrivals[of, me, about]
        del self._arrivals[of, me, about]

    def _deliver(self, when: float, worked: Signal | None, name: Hashable) -> Process:
        yield self.clock.after(when - self.clock.now)
        if worked is not None:
            yield worked
        self._arrivals[name].happen()

    def pull(self) -> Process:
        """A model from the server."""
        return self._with_server(self._pulls)

    def push(self) -> Process:
        """A gradient to the server."""
        return self._with_server(self._pushes)

    def step(self) -> Process:
        """The server's for one gradient, after those for gradients that came before."""
        before, mine = self._last_step, Signal()
        self._last_step = mine
        if before is not None:
            yield before
        yield self._cores.work(self.case.step)
        mine.happen()

    def _with_server(self, way: Shared) -> Process:
        link = self.case.network.outside
        worked = self._worked(self.case.size, link)
        yield way.work(self.case.size)
        beside = link.beside if self.case.together else None
        yield self.clock.after(link.latency if beside is None else beside)
        if worked is not None:
            yield worked

    def _together(self, jobs: int) -> float:
        found = self.case.together
        return found[min(jobs, len(found)) - 1] if found else float(jobs)

    def draws(self, me: int, purpose: str) -> np.random.Generator:
        """A learner's own."""
        return seeding.generator(self.case.seed, 0, f"learner {me}", f"simulated {purpose}")

    def _drawn(self, me: int) -> Iterator[float]:
        joined = seeding.generator(self.case.seed, 0, "", "simulated joined batches")
        own = self.draws(me, "computing")
        while True:
            found = joined.choice(self._for_frames, 256) + own.choice(self._beside, 256)
            yield from np.maximum(found, min(self.case.seconds)).tolist()


def shares_of_an_epoch(batches: float) -> list[float]:
    """Which share of a whole batch a learner computes in each step of an epoch, in which it has so
    many of them: in the last step what is left.
    """
    whole, rest = divmod(batches + LITTLE, 1)
    return [1.0] * int(whole) + [rest - LITTLE] * (rest > 2 * LITTLE)


def for_its_frames(
    seconds: Sequence[float], frames: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds that each batch takes for its frames, by a straight line (least squares), and those
    that it takes besides, float64 (batches,). All are besides where frames do not differ.
    """
    taken = np.asarray(seconds, dtype=np.float64)
    if len(set(frames)) < 2:
        return np.zeros(len(taken)), taken
    line = np.polynomial.Polynomial.fit(frames, taken, 1)
    expected = line(np.asarray(frames, dtype=np.float64))
    return expected, taken - expected
