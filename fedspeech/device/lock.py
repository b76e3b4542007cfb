"""One process at a time works on what a device holds, and one box at a time answers for it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedspeech.errors import DiskError, RunError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Nobody else changes the models in this folder while the block runs.

    The system takes the lock from a process that dies. Raises RunError where another process has
    it and `wait` is false, DiskError where the folder cannot be written.
    """
    with _open(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunError(
                f"{folder}: another process is at work on these models; try again when it is done"
            ) from None
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other box answers for this device while the block runs.

    The lock is this process's own: forks, which may outlive it for a moment, do not hold it. Raises
    RunError where another process has it, DiskError where the folder cannot be written.
    """
    with _open(folder) as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder}: another `fedspeech box` answers for this device; stop that one first, "
                "or give this one a folder of its own"
            ) from None
        yield


def _open(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("w")
    except OSError as error:
        raise DiskError(f"cannot write {folder / LOCK}: {error}") from error
