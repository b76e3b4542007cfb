"""What all benchmarks share: rows, repetitions with median and spread, children with time limits.

A child is a fresh process that answers jobs, or gives rows until it is done. One that raises, dies
or takes too long is a `Failed` here, and its processes are ended: a benchmark notes it as a row.
"""

import ctypes
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One line of a table; what was measured is a `spread`, what went wrong is in `failed`."""

ANSWER, END, ERROR = "answer", "end", "error"
PR_SET_PDEATHSIG = 1
GRACE = 60.0
"""Seconds that a child may take to end once nobody asks it any more."""
STARTED = time.monotonic()


@dataclass(frozen=True)
class Setting:
    """Where a benchmark may write, and what all its draws follow from."""

    folder: Path
    seed: int = 0


class Failed(Exception):
    """A child did not answer: what it raised, that it died, or that it took too long."""


class Ended(Failed):
    """A child has nothing more to say."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of some repetitions, and the values themselves."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": list(values),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The spread of above / below, repetition by repetition: both were measured side by side."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def say(text: str) -> None:
    """A line of progress, with the seconds since this process began."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


class Channel:
    """The child's end: iterate over the jobs, `answer` what the other end waits for."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def __iter__(self) -> Iterator[Any]:
        with suppress(EOFError):
            while (job := self._connection.recv()) is not None:
                yield job

    def answer(self, value: object) -> None:
        """Send a value, anything that pickle takes."""
        self._connection.send((ANSWER, value))


class Child:
    """A process that runs `target(channel, *args)`; what it prints goes into the file `log`."""

    def __init__(self, target: Callable[..., None], *args: object, log: Path | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        # Apple's pfl takes a process of any other name for one of its data loaders.
        self._process = context.Process(
            target=_serve, args=(there, log, target, args), name="MainProcess"
        )
        self._started = time.perf_counter()
        self._process.start()
        there.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self._started

    def send(self, job: object) -> None:
        """Give it something to do."""
        with suppress(OSError):  # that it died is told when it is asked for the answer
            self._here.send(job)

    def receive(self, limit: float) -> Any:
        """Its next answer. Raises Failed, and Ended where it was done."""
        if not self._here.poll(limit):
            self.kill()
            raise Failed(f"no answer within {limit:.0f} s")
        try:
            kind, value = self._here.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(GRACE)
            raise Failed(f"its process ended with {self._process.exitcode}") from None
        if kind == ERROR:
            self.kill()
            raise Failed(value)
        if kind == END:
            raise Ended("it ended without an answer")
        return value

    def ask(self, job: object, limit: float) -> Any:
        """The answer to a job. Raises Failed."""
        self.send(job)
        return self.receive(limit)

    def answers(self, limit: float) -> Iterator[Any]:
        """All that it answers of itself, `limit` seconds in all. Raises Failed."""
        with suppress(Ended):
            while True:
                yield self.receive(max(0.0, limit - self.age))

    def close(self) -> None:
        """Let it end, and wait until it has."""
        self.send(None)
        self._process.join(GRACE)
        self.kill()

    def kill(self) -> None:
        """End it now, and with it whatever it has started."""
        self._process.kill()
        self._process.join()
        self._here.close()


def _serve(
    connection: "Connection[Any, Any]",
    log: Path | None,
    target: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    # Whoever kills the parent does not know of its children.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if log is not None:
        _print_into(log)
    try:
        target(Channel(connection), *args)
        connection.send((END, None))
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc()
        with suppress(OSError):
            connection.send((ERROR, f"{type(error).__name__}: {error}"))


def _print_into(log: Path) -> None:
    """Whatever this process and those that it starts print."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
