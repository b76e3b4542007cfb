"""How fast learners on this machine talk to each other, measured by two of them."""

import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch

from fedspeech.training.parallel.group import LOOPBACK, Group, Seat, form, join, serve
from fedspeech.training.parallel.simulated_world import Link
from fedspeech.training.parallel.watch import Watch

LARGE_BYTES = 16_000_000
SMALL_TIMES, LARGE_TIMES = 200, 10


def measured_link() -> Link:
    """From what two processes take for sums of a small and of a large tensor."""
    store, port = serve()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = [pool.submit(_sums, rank, port) for rank in range(2)]
        told = [each.result() for each in found]
    del store
    small, large = (max(each[i].seconds for each in told) for i in range(2))
    return link_of(small, large, sum(large.work for _, large in told), LARGE_BYTES)


def link_of(small: float, large: float, work: float, size: int) -> Link:
    """A sum of two on a ring is two messages of half its size, one after the other, of each.

    `small` and `large` are seconds of a sum, `work` the processor seconds of both for a large one.
    """
    return Link(size / max(large - small, 1e-9), small / 2, work / (2 * size))


class _Sum(NamedTuple):
    seconds: float
    work: float
    """Processor seconds of this learner."""


def _sums(rank: int, port: int) -> tuple[_Sum, _Sum]:
    torch.set_num_threads(1)
    seat = Seat(rank, (0, 1), "loopback")
    group = form(join(LOOPBACK, port), seat, Watch(), threading.Event())
    try:
        return _sum(group, 1, SMALL_TIMES), _sum(group, LARGE_BYTES // 4, LARGE_TIMES)
    finally:
        group.close()


def _sum(group: Group, values: int, times: int) -> _Sum:
    """The median of so many sums of so many float32."""
    tensor, found = torch.zeros(values), []
    for _ in range(times):
        started, worked = time.perf_counter(), time.process_time()
        group.sum(tensor)
        found.append((time.perf_counter() - started, time.process_time() - worked))
    return _Sum(*map(statistics.median, zip(*found, strict=True)))
