"""Training where memory is short: layers are computed twice, and what is freed goes back at once.

It costs up to twice the time and changes no bit, so it follows from what is free and is no setting.
"""

import ctypes
import logging

import torch

from fedspeech import machine
from fedspeech.accelerator import place
from fedspeech.models.tdnn import TDNN

log = logging.getLogger("fedspeech")

SHARE = 0.2
"""Of what is free, what layers may keep. While they are computed there is as much again and more,
and gradients and the optimizer need memory as well."""
TRIM, MMAP = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
TRIM_BYTES, MMAP_BYTES = 2**17, 2**20


def settle(model: torch.nn.Module, batch: int, frames: int) -> None:
    """Let a model be trained within what is free, on batches of so many utterances and frames."""
    if not isinstance(model, TDNN) or place().type != "cpu":
        return
    kept, free = model.kept_bytes(batch, frames), machine.memory_free_bytes()
    model.recomputes = kept > SHARE * free
    if model.recomputes:
        log.info(
            "%d MiB free: layers would keep %d, and are computed twice", free >> 20, kept >> 20
        )
        _hand_back()


def _hand_back() -> None:
    """Large blocks lie apart from now on, and go back to the system when they are freed.

    By default glibc learns to keep blocks of up to 32 MiB among all others, where they leave gaps
    that take more memory than the second computation saves.
    """
    system = ctypes.CDLL(None)
    if hasattr(system, "mallopt"):
        system.mallopt(TRIM, TRIM_BYTES)
        system.mallopt(MMAP, MMAP_BYTES)
        system.malloc_trim(0)
