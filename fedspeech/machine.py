"""What a machine lets this process have: processors, memory, GPUs.

A container or a batch system gives less than the machine has. Control groups say so: version 2
(`cpu.max`, `memory.max`) or version 1 (`cpu.cfs_quota_us`, `memory.limit_in_bytes`), in the group
of this process and in all above it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Processors that this process may keep busy: its affinity and its control groups."""
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    return max(1, min([there, *(math.floor(quota) for quota in _processor_quotas())]))


def memory_limit_bytes() -> int:
    """Memory that this process and its children may have: the machine's, or less."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([there, *_limits("memory.max"), *_limits("memory.limit_in_bytes")])


def memory_free_bytes() -> int:
    """What of that limit is free, counting what only caches files as free."""
    free = [_meminfo("MemAvailable")]
    for group in _groups("memory"):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                free.append(most - used + _stat(group / "memory.stat", cache))
    return max(0, min(free))


class Gpu(NamedTuple):
    """A GPU that PyTorch can use."""

    name: str
    free_bytes: int
    all_bytes: int


def gpus() -> list[Gpu]:
    """The GPUs that PyTorch finds."""
    found = []
    for number in range(torch.cuda.device_count()):
        free, there = torch.cuda.mem_get_info(number)
        found.append(Gpu(torch.cuda.get_device_name(number), free, there))
    return found


def _processor_quotas() -> Iterator[float]:
    for group in _groups("cpu"):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            yield quota / period
        quota, period = _number(group / "cpu.max"), _number(group / "cpu.max", 1)
        if quota is not None and period:
            yield quota / period


def _limits(name: str) -> Iterator[int]:
    found = (_number(group / name) for group in _groups("memory"))
    return (limit for limit in found if limit is not None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the root.

    In a container the path that the kernel names may lie outside of what is mounted: then only what
    is there counts.
    """
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / controllers
        own = root / path.lstrip("/")
        yield from (
            group for group in (own, *own.parents) if group.is_relative_to(root) and group.is_dir()
        )


def _number(path: Path, field: int = 0) -> int | None:
    """A number in a file, or None where there is none: no file, or `max`."""
    try:
        return int(path.read_text(encoding="ascii").split()[field])
    except (OSError, ValueError, IndexError):
        return None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)


def _meminfo(name: str) -> int:
    """Bytes; what the kernel does not tell is taken to be all there is."""
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return memory_limit_bytes()
