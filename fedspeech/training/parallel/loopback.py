"""How fast learners on this machine talk to each other, measured by two of them."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from fedspeech.training.parallel.group import LOOPBACK, Group, Seat, form, join, serve
from fedspeech.training.parallel.simulated_world import Link
from fedspeech.training.parallel.watch import Watch
from fedspeech.training.workers import see_gpus, working

SMALL_TIMES, LARGE_TIMES = 200, 50
FLOAT_BYTES = 4
PIECE = 128
"""Rows and columns of the matrices that are multiplied between sums, in a part of a millisecond."""
BUSY_SECONDS = 10.0
LEAST_TIMES = 10
DIED = "of two processes that measured how fast they talk to each other one died"


def measured_link(piece: float, size: int) -> Link:
    """From what two processes take for sums of a small tensor, and of a large one of so many bytes,
    which are those of a model: how fast a message goes depends on how large it is.

    Small ones are also gathered, with `piece` seconds of computing before each: then it takes as
    well until the other one is as far, and until a processor is free. Raises RunError where one of
    them dies.
    """
    store, port = serve()
    with working(2, DIED, see_gpus, False) as pool:
        found = [pool.submit(_sums, rank, port, piece, size) for rank in range(2)]
        told = [each.result() for each in found]
    del store
    small, large = (max(each[i].seconds for each in told) for i in range(2))
    busy = statistics.fmean(each[2].seconds for each in told)
    return link_of(small, large, busy, sum(each[1].work for each in told), size)


def link_of(small: float, large: float, busy: float, work: float, size: int) -> Link:
    """A sum of two on a ring is two messages of half its size, one after the other, of each; who
    gathers from two sends one.

    `small` and `large` are seconds of a sum, `busy` those of gathering a small tensor between
    computing; `work` the processor seconds of both for a large sum.
    """
    return Link(size / max(large - small, 1e-9), small / 2, work / (2 * size), busy)


class _Took(NamedTuple):
    seconds: float
    work: float
    """Processor seconds of this learner."""


def _sums(rank: int, port: int, piece: float, size: int) -> tuple[_Took, _Took, _Took]:
    torch.set_num_threads(1)
    seat = Seat(rank, (0, 1), "loopback")
    group = form(join(LOOPBACK, port), seat, Watch(), threading.Event())
    try:
        small, large = _sum(group, 1, SMALL_TIMES), _sum(group, size // FLOAT_BYTES, LARGE_TIMES)
        return small, large, _busy(group, piece)
    finally:
        group.close()


def _sum(group: Group, values: int, times: int) -> _Took:
    """The median of so many sums of so many float32."""
    tensor = torch.zeros(values)
    found = [_took(group.sum, tensor) for _ in range(times)]
    return _Took(*map(statistics.median, zip(*found, strict=True)))


def _took(exchange: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> _Took:
    started, worked = time.perf_counter(), time.process_time()
    exchange(tensor)
    return _Took(time.perf_counter() - started, time.process_time() - worked)


def _busy(group: Group, piece: float) -> _Took:
    """The mean of gathering one float32 some times, each after so many seconds of computing.

    The mean, for what seldom takes long counts as well where many follow each other.
    """
    values = torch.randn(PIECE, PIECE)
    group.sum(torch.zeros(1))
    started = time.perf_counter()
    for _ in range(SMALL_TIMES):
        torch.mm(values, values)
    once = (time.perf_counter() - started) / SMALL_TIMES
    times = torch.tensor(piece / once)
    group.sum(times)  # so that both compute as much
    found = []
    for _ in range(max(LEAST_TIMES, min(SMALL_TIMES, int(BUSY_SECONDS / piece)))):
        for _ in range(max(1, round(float(times) / 2))):
            torch.mm(values, values)
        found.append(_took(group.gather, times))
    return _Took(*map(statistics.fmean, zip(*found, strict=True)))
