"""How long an epoch takes with many learners: simulated, from what a learner of one was measured.

A discrete-event model (`events`) of each method. Learners compute for as long as measured batches
took, messages take their time on links, and who has to wait for whom follows from the method. So
stragglers and contention are not assumed, they happen. What comes out is a prediction and no
measurement; wherever it is shown it is called simulated.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedspeech.training.parallel.events import Process
from fedspeech.training.parallel.simulated_world import Case, Link, Network, World

__all__ = ["PROCESSES", "Case", "Link", "Network", "Prediction", "predict"]


class Prediction(NamedTuple):
    """Of a case; in each tuple a number for each learner, in an epoch."""

    seconds: float
    """Of an epoch."""
    computing: tuple[float, ...]
    """Seconds."""
    waiting: tuple[float, ...]
    """Seconds until it was done, less those computing."""
    batches: tuple[float, ...]


def predict(case: Case) -> Prediction:
    """Simulate a case; the same case gives the same prediction."""
    world = World(case)
    for learner in range(case.learners):
        world.clock.start(_lives(world, learner))
    world.clock.run()
    ended, computing, done = (
        np.array(each) / case.epochs for each in (world.ended, world.computing, world.done)
    )
    waiting = ended - computing
    return Prediction(float(ended.max()), *(tuple(a.tolist()) for a in (computing, waiting, done)))


def _lives(world: World, me: int) -> Process:
    yield from PROCESSES[world.case.method](world, me)
    world.ended[me] = world.clock.now


def _allreduce(world: World, me: int) -> Process:
    everybody = range(world.case.learners)
    for step in range(world.rounds):
        yield from world.compute(me)
        yield from _sum(world, me, everybody, step)


def _sum(world: World, me: int, group: Sequence[int], about: Hashable) -> Process:
    """On a ring: 2 (n - 1) times everybody sends one of n chunks on, and waits for the next one."""
    place, count = group.index(me), len(group)
    following, preceding = group[(place + 1) % count], group[place - 1]
    for turn in range(2 * (count - 1)):
        world.send(me, following, world.case.size / count, (about, turn))
        yield from world.receive(me, preceding, (about, turn))
    yield world.sent(me)


def _ring(world: World, me: int) -> Process:
    for step in range(world.rounds):
        yield from world.compute(me)
        neighbours = _neighbours(world, me)
        for other in neighbours:
            world.send(me, other, world.case.size, step)
        for other in neighbours:
            yield from world.receive(me, other, step)


def _neighbours(world: World, me: int) -> list[int]:
    """Two, one where there are two learners, none of a single one."""
    count = world.case.learners
    return sorted({(me - 1) % count, (me + 1) % count} - {me})


def _parameter_server(world: World, me: int) -> Process:
    while world.take():
        if world.case.learners > 1:
            yield from world.with_server()
        yield from world.compute(me)
        if world.case.learners > 1:
            yield from world.with_server()


def _fixed_ring(world: World, me: int) -> Process:
    neighbours = _neighbours(world, me)
    return _ad_psgd(world, me, itertools.cycle(neighbours))


def _random_partner(world: World, me: int) -> Process:
    others = [other for other in range(world.case.learners) if other != me]
    draws = world.draws(me, "partners")
    return _ad_psgd(world, me, (int(draws.choice(others)) for _ in itertools.count() if others))


def _ad_psgd(world: World, me: int, partners: Iterator[int]) -> Process:
    while world.take():
        yield from world.compute(me)
        if world.case.learners > 1:
            yield from world.exchange(me, next(partners))


def _bmuf(world: World, me: int) -> Process:
    everybody = range(world.case.learners)
    for step in range(1, world.rounds + 1):
        yield from world.compute(me)
        if step % world.case.block == 0 or step == world.rounds:
            yield from _sum(world, me, everybody, step)


def _delay_by_one(world: World, me: int) -> Process:
    neighbours = _neighbours(world, me)
    while world.take():
        mixed = world.begin(world.exchange(me, other) for other in neighbours)
        yield from world.compute(me)
        yield mixed


def _hierarchical(world: World, me: int) -> Process:
    size = world.case.node_size
    node, nodes = me // size, world.case.learners // size
    inside = range(node * size, (node + 1) * size)
    others = itertools.cycle(sorted({(node - 1) % nodes, (node + 1) % nodes} - {node}))
    for step in itertools.count():
        if not world.take_together(node, step, size):
            return
        yield from world.compute(me)
        yield from _sum(world, me, inside, (node, step))
        if nodes > 1 and me == inside[0]:
            yield from world.exchange(me, next(others) * size)
            for other in inside[1:]:
                world.send(me, other, world.case.size, (node, step))
        elif nodes > 1:
            yield from world.receive(me, inside[0], (node, step))


Lives = Callable[[World, int], Process]
PROCESSES: dict[str, Lives] = {
    "allreduce": _allreduce,
    "parameter-server": _parameter_server,
    "ring": _ring,
    "ad-psgd ring": _fixed_ring,
    "ad-psgd random": _random_partner,
    "ad-psgd delay-by-one": _delay_by_one,
    "hierarchical": _hierarchical,
    "bmuf": _bmuf,
}
"""What a learner does, by method and, of `ad-psgd`, by partner."""
