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

from fedspeech.training.parallel.events import Process, Signal
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
    # Epochs are simulated whole, or some more where blocks or whoever comes first end them.
    share = case.batches / sum(world.done)
    ended, computing, done = (
        np.array(each) * share for each in (world.ended, world.computing, world.done)
    )
    waiting = ended - computing
    return Prediction(float(ended.max()), *(tuple(a.tolist()) for a in (computing, waiting, done)))


def _lives(world: World, me: int) -> Process:
    yield from PROCESSES[world.case.method](world, me)
    world.ended[me] = world.clock.now


def _allreduce(world: World, me: int) -> Process:
    everybody = range(world.case.learners)
    for step, share in enumerate(world.parts()):
        yield from world.compute(me, share)
        yield _small(world, everybody, world.case.statistics)
        yield from _sum(world, me, everybody, step)


def _small(world: World, group: Sequence[int], tensors: int) -> Signal:
    """Small tensors, gathered one after the other, each around a ring: the one of who is behind
    its fastest link takes all others.
    """
    around = zip(group, [*group[1:], group[0]], strict=True)
    links = [world.case.network.link(*pair) for pair in around]
    taken = [link.latency if link.busy is None else link.busy for link in links]
    return world.clock.after(tensors * (sum(taken) - min(taken)))


def _sum(world: World, me: int, group: Sequence[int], about: Hashable) -> Process:
    """On a ring: 2 (n - 1) times everybody sends one of n chunks on, and waits for the next one."""
    place, count = group.index(me), len(group)
    if count == 1:
        return
    following, preceding = group[(place + 1) % count], group[place - 1]
    for turn in range(2 * (count - 1)):
        world.send(me, following, world.case.size / count, (about, turn))
        yield from world.receive(me, preceding, (about, turn))
    yield world.sent(me, following)


def _ring(world: World, me: int) -> Process:
    """Models travel while gradients are computed; with gradients a step late it is the same."""
    count = world.case.learners
    beside = dict.fromkeys([(me + 1) % count, (me - 1) % count])
    neighbours = [other for other in beside if other != me]
    for step, share in enumerate(world.parts()):
        for other in neighbours:
            world.send(me, other, world.case.size, step)
        yield from world.compute(me, share)
        for other in neighbours:
            yield from world.receive(me, other, step)


def _parameter_server(world: World, me: int) -> Process:
    """Pull, compute, push, and wait for the server's step, without a bound for staleness; who is
    alone has the model itself.
    """
    alone = world.case.learners == 1
    while share := world.take():
        if not alone:
            yield from world.pull()
        yield from world.compute(me, share, steps=alone)
        if not alone:
            yield from world.push()
            yield from world.step()


def _fixed_ring(world: World, me: int) -> Process:
    return _ad_psgd(world, me, _partners(world, me, world.case.learners, random=False))


def _random_partner(world: World, me: int) -> Process:
    return _ad_psgd(world, me, _partners(world, me, world.case.learners, random=True))


def _ad_psgd(world: World, me: int, partners: Iterator[int]) -> Process:
    """Who has partners asks one of them while it computes; they answer at any time."""
    for step in itertools.count():
        if not (share := world.take()):
            return
        partner = next(partners, None)
        asked = None if partner is None else world.aside(_ask(world, me, partner, step))
        yield from world.compute(me, share)
        if asked is not None:
            yield asked


def _partners(world: World, place: int, count: int, random: bool) -> Iterator[int]:
    """Of an even place odd ones, any or those beside it on a ring of `count`; else none."""
    beside = {(place + 1) % count, (place - 1) % count}
    others = [odd for odd in range(1, count, 2) if random or odd in beside]
    if place % 2 or not others:
        return iter(())
    draws = world.draws(place, "partners")
    return (
        (int(draws.choice(others)) for _ in itertools.count())
        if random
        else itertools.cycle(others)
    )


def _ask(world: World, me: int, partner: int, step: int) -> Process:
    world.send(me, partner, world.case.size, (step, "asked"))
    yield from world.receive(partner, me, (step, "asked"))
    world.send(partner, me, world.case.size, (step, "answered"))
    yield from world.receive(me, partner, (step, "answered"))


def _hierarchical(world: World, me: int) -> Process:
    """The first learner of a node does for it what a learner of `ad-psgd` does.

    It tells the others what to learn, and all meet before the model is mixed, by a sum, which goes
    around twice: with batch statistics that is as much as three more of these.
    """
    size = world.case.node_size
    node, nodes = me // size, world.case.learners // size
    inside = range(node * size, (node + 1) * size)
    partners = _partners(world, node, nodes, random=False)
    for step in itertools.count():
        if not (share := world.take_together(node, step, size)):
            return
        partner = next(partners, None) if me == inside[0] else None
        asked = None if partner is None else world.aside(_ask(world, me, partner * size, step))
        yield from world.compute(me, share)
        yield _small(world, inside, world.case.statistics + 3)
        yield from _sum(world, me, inside, step)
        if asked is not None:
            yield asked
        yield from _broadcast(world, me, inside, (step, "model"))


def _broadcast(world: World, me: int, group: Sequence[int], about: Hashable) -> Process:
    """From the first one to all others."""
    if me != group[0]:
        yield from world.receive(me, group[0], about)
        return
    for other in group[1:]:
        world.send(me, other, world.case.size, about)
    if len(group) > 1:
        yield world.sent(me, group[-1])


def _bmuf(world: World, me: int) -> Process:
    """Whole blocks, however few batches an epoch has."""
    everybody, block = range(world.case.learners), world.case.block
    for step, share in enumerate(world.parts(block)):
        yield from world.compute(me, share)
        if (step + 1) % block == 0:
            yield from _sum(world, me, everybody, step)


Lives = Callable[[World, int], Process]
PROCESSES: dict[str, Lives] = {
    "allreduce": _allreduce,
    "parameter-server": _parameter_server,
    "ring": _ring,
    "ad-psgd ring": _fixed_ring,
    "ad-psgd random": _random_partner,
    "ad-psgd delay-by-one": _ring,
    "hierarchical": _hierarchical,
    "bmuf": _bmuf,
}
"""What a learner does, by method and, of `ad-psgd`, by partner."""
