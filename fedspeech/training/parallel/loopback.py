"""How fast learners on this machine talk to each other, measured by two of them."""

import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from fedspeech.training.parallel.group import LOOPBACK, Group, Seat, form, join, serve
from fedspeech.training.parallel.simulated_world import Link
from fedspeech.training.parallel.watch import Watch

LARGE_BYTES = 16_000_000
SMALL_TIMES, LARGE_TIMES = 200, 10


def measured_link() -> Link:
    """From the seconds that two processes take for sums of a small and of a large tensor."""
    store, port = serve()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = [pool.submit(_sums, rank, port) for rank in range(2)]
        small, large = (max(pair) for pair in zip(*(each.result() for each in found), strict=True))
    del store
    return link_of(small, large, LARGE_BYTES)


def link_of(small: float, large: float, size: int) -> Link:
    """A sum of two on a ring is two messages of half its size, one after the other."""
    return Link(size / max(large - small, 1e-9), small / 2)


def _sums(rank: int, port: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    seat = Seat(rank, (0, 1), "loopback")
    group = form(join(LOOPBACK, port), seat, Watch(), threading.Event())
    try:
        return _seconds(group, 1, SMALL_TIMES), _seconds(group, LARGE_BYTES // 4, LARGE_TIMES)
    finally:
        group.close()


def _seconds(group: Group, values: int, times: int) -> float:
    """The median of so many sums of so many float32."""
    tensor, found = torch.zeros(values), []
    for _ in range(times):
        started = time.perf_counter()
        group.sum(tensor)
        found.append(time.perf_counter() - started)
    return statistics.median(found)
