"""Where models compute: a GPU where PyTorch finds one, else the processor; in bfloat16 or not."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from fedspeech import machine
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import RunError

MOST_AT_ONCE = max(8, os.cpu_count() or 1)
"""Processes that are taken to share a device's memory; more than the machine has processors there
rarely are. Of all its memory, not of what happens to be free, or for as many as there happen to be:
another split gives other roundings."""


def place() -> torch.device:
    """The device of models and batches. A worker on Ray sees only the GPUs that it was given."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until a GPU has done all that it was asked to: NCCL and kernels are only queued."""
    if place().type == "cuda":
        torch.cuda.synchronize()


def trains_on_gpu(engine: EngineSettings) -> bool:
    """Whether what trains clients sees a GPU, which need not be what this process sees.

    Ray hides GPUs from workers that ask for none; simulated ones stand in for none at all.
    """
    if engine.grid == "in-process":
        return place().type == "cuda"
    return engine.gpus_per_worker > 0 and not engine.simulated_gpus


def memory_bytes() -> int:
    """All the memory of that device, whatever of it is taken."""
    if place().type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return machine.memory_limit_bytes()


def lattice_bytes() -> float:
    """What a transducer's lattice may take of that memory."""
    return memory_bytes() / MOST_AT_ONCE


def _ran_out(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that the memory of that device was too small."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # PyTorch has no class of its own for a processor's.
    return "DefaultCPUAllocator" in str(error)


@contextmanager
def within_memory(too_large: str) -> Iterator[None]:
    """A block for which the memory may be too small: raises RunError with that text then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        raise RunError(too_large) from None


def autocast(precision: str) -> torch.autocast:
    """The block in which matrix products are taken in bfloat16, if they are."""
    return torch.autocast(place().type, torch.bfloat16, enabled=computes_in_bf16(precision))


def computes(precisions: Collection[str], on: torch.device | None = None) -> str:
    """Where models compute and in what, by these settings: `on cuda in bf16`.

    `on` is the device; None: that of this process.
    """
    device = on or place()
    kinds = {"bf16" if computes_in_bf16(each, device) else "fp32" for each in precisions}
    return f"on {device.type} in {' and '.join(sorted(kinds))}"


def computes_in_bf16(precision: str, on: torch.device | None = None) -> bool:
    """Whether a setting means bfloat16 here; `auto` does where GPU or processor computes in it.

    `on` is the device; None: that of this process.
    """
    if precision != "auto":
        return precision == "bf16"
    if (on or place()).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
