"""How much of a box its owner gives: threads, and how far training gives way to everything else."""

import os
from pathlib import Path

import torch

from fedspeech.errors import ConfigError

TASKS = Path("/proc/self/task")
LEAST, MOST = 0, 19


def settle(threads: int, niceness: int | None = None) -> None:
    """Let this process compute with so many threads, and be as nice as that (0 … 19, see nice(1)),
    or as it is.

    Of another number of threads come other roundings. Raises ConfigError where a number is out of
    range, or the process is nicer already and may not take that back.
    """
    if threads < 1:
        raise ConfigError(f"threads: expected at least 1, found {threads}")
    if niceness is not None and not LEAST <= niceness <= MOST:
        raise ConfigError(f"nice: expected {LEAST} … {MOST}, found {niceness}")
    torch.set_num_threads(threads)
    if niceness is not None:
        _be_nice(niceness)


def _be_nice(niceness: int) -> None:
    # Linux counts it for each thread, and PyTorch's have begun by the second message.
    for task in TASKS.iterdir() if TASKS.exists() else ():
        try:
            os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)
        except ProcessLookupError:  # ended since
            continue
        except PermissionError:
            raise ConfigError(f"nice: this process may not go back to {niceness}") from None
