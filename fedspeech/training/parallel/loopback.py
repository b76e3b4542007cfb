"""How fast learners on this machine talk to each other, measured by two of them."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fedspeech.training.parallel.group import LOOPBACK, Group, Seat, form, join, serve
from fedspeech.training.parallel.simulated_world import Link
from fedspeech.training.parallel.watch import Watch
from fedspeech.training.workers import see_gpus, working

SMALL_TIMES, LARGE_TIMES = 200, 50
BUSY_TIMES = 3000
FLOAT_BYTES = 4
PIECE = 128
"""Rows and columns of the matrices that are multiplied between sums, in a part of a millisecond."""
BUSY_SECONDS = 5.0
"""Of computing between what is gathered; in less the mean is still by chance."""
LEAST_TIMES = 10
DIED = "of the processes that measured how fast they talk to each other one died"
COMPUTES, TALKED = "computes", "talked"
LOOK_SECONDS = 0.01


def measured_link(piece: float, size: int, places: int) -> Link:
    """From what two processes take for sums of a small tensor, and of a large one of so many bytes,
    which are those of a model: how fast a message goes depends on how large it is.

    Small ones are also gathered, with `piece` seconds of computing before each: then it takes as
    well until the other one is as far, and until a processor is free. And they are sent to and fro
    while others compute, as many as there are `places` for beside one of the two. Raises RunError
    where a process dies.
    """
    others = max(1, places - 1)
    store, port = serve()
    with working(2 + others, DIED, see_gpus, False) as pool:
        told = [
            each.result() for each in [pool.submit(_sums, r, port, piece, size) for r in (0, 1)]
        ]
        beside: list[Future[Any]] = [pool.submit(_computes, port) for _ in range(others)]
        there = [pool.submit(_to_and_fro, rank, port, others) for rank in (0, 1)]
        for each in as_completed(beside + there):
            each.result()  # of the first one that fails, which others may wait for
        back_and_forth = statistics.fmean(each.result() for each in there)
    del store
    small, large = (max(each[i].seconds for each in told) for i in range(2))
    busy = statistics.fmean(each[2].seconds for each in told)
    work = sum(each[1].work for each in told)
    return link_of(small, large, busy, back_and_forth, work, size)


def link_of(
    small: float, large: float, busy: float, back_and_forth: float, work: float, size: int
) -> Link:
    """A sum of two on a ring is two messages of half its size, one after the other, of each; who
    gathers from two sends one.

    `small` and `large` are seconds of a sum, `busy` those of gathering a small tensor between
    computing, `back_and_forth` those of a small message and its answer beside who computes; `work`
    the processor seconds of both for a large sum.
    """
    bandwidth = size / max(large - small, 1e-9)
    return Link(bandwidth, small / 2, work / (2 * size), busy, back_and_forth / 2)


class _Took(NamedTuple):
    seconds: float
    work: float
    """Processor seconds of this learner."""


def _sums(rank: int, port: int, piece: float, size: int) -> tuple[_Took, _Took, _Took]:
    with _two(rank, port, "sums") as group:
        small, large = _sum(group, 1, SMALL_TIMES), _sum(group, size // FLOAT_BYTES, LARGE_TIMES)
        return small, large, _busy(group, piece)


@contextmanager
def _two(rank: int, port: int, about: str) -> Iterator[Group]:
    torch.set_num_threads(1)
    group = form(join(LOOPBACK, port), Seat(rank, (0, 1), about), Watch(), threading.Event())
    try:
        yield group
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
    for _ in range(max(LEAST_TIMES, min(BUSY_TIMES, int(BUSY_SECONDS / piece)))):
        for _ in range(max(1, round(float(times) / 2))):
            torch.mm(values, values)
        found.append(_took(group.gather, times))
    return _Took(*map(statistics.fmean, zip(*found, strict=True)))


def _computes(port: int) -> None:
    """Until the two have talked."""
    torch.set_num_threads(1)
    store = join(LOOPBACK, port)
    values = torch.randn(PIECE, PIECE)
    store.add(COMPUTES, 1)
    while not store.check([TALKED]):
        for _ in range(SMALL_TIMES):
            torch.mm(values, values)


def _to_and_fro(rank: int, port: int, others: int) -> float:
    """The mean seconds of a small message and its answer, while so many others compute."""
    store = join(LOOPBACK, port)
    with _two(rank, port, "to and fro") as group:
        while int(store.add(COMPUTES, 0)) < others:
            time.sleep(LOOK_SECONDS)
        value = torch.zeros(1)
        first, second = (group.send, group.receive) if rank == 0 else (group.receive, group.send)
        started = time.perf_counter()
        for _ in range(SMALL_TIMES):
            first(value, 1 - rank).arrived()
            second(value, 1 - rank).arrived()
        took = time.perf_counter() - started
        store.set(TALKED, "")
    return took / SMALL_TIMES
