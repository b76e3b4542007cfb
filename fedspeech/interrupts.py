"""Ctrl-C, which ends the command also where the library at work makes something else of it.

Python raises KeyboardInterrupt wherever the main thread happens to be. Some C code turns that into
an error of its own, and some imports swallow it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 130
"""Exit status after Ctrl-C, as shells have it."""
_asked = threading.Event()


def watch() -> None:
    """Remember from now on that somebody has asked to stop; not where the signal is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def check() -> None:
    """Raise KeyboardInterrupt in the main thread where somebody has asked to stop."""
    if _asked.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextmanager
def told_apart() -> Iterator[None]:
    """An error after somebody has asked to stop leaves the block as KeyboardInterrupt."""
    try:
        yield
    except Exception as error:
        if _asked.is_set():
            raise KeyboardInterrupt from error
        raise


def _interrupted(number: int, frame: FrameType | None) -> None:
    _asked.set()
    signal.default_int_handler(number, frame)
