"""Processes that work for this one: none outlives it, and Ctrl-C is this one's to hear."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from typing import Any

from fedspeech.errors import RunError

# PyTorch is not imported here: a worker that still imports it hears of Ctrl-C and of the parent.


@contextmanager
def working(
    count: int, died: str, begin: Callable[..., None], *given: Any
) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each of which begins with `begin(*given)`.

    Raises RunError with the text `died` where one of them dies. An exception in the block ends all.
    """
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (begin, *given)) as pool:
        try:
            # Python misses deaths of those that were not there when one of them last answered.
            for begun in [pool.submit(os.getpid) for _ in range(count)]:
                begun.result()
            yield pool
        except BrokenProcessPool:
            raise RunError(died) from None
        except BaseException:
            # Nobody waits for what they do, and they may wait for each other.
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


def see_gpus(there: bool) -> None:
    """Let PyTorch find this process's GPUs or none; it looks for them once, after this."""
    if not there:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _begin(begin: Callable[..., None], *given: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_go_with_the_parent, daemon=True).start()
    begin(*given)


def _go_with_the_parent() -> None:
    """A killed run must not leave workers behind, which would work on for nobody."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
