"""One process at a time works on what a device holds."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedspeech.errors import DiskError, RunError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Nobody else changes the models in this folder while the block runs.

    The system takes the lock from a process that dies. Raises RunError where another process has
    it and `wait` is false, DiskError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise DiskError(f"cannot write {folder / LOCK}: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunError(
                f"{folder}: another process is at work on these models; try again when it is done"
            ) from None
        yield
