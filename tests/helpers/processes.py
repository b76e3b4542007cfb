"""The processes that a test's commands start, which have to end with them."""

import os
import time
from pathlib import Path
from typing import Any

from fedspeech.errors import RunError

MARK = "FEDSPEECH_STARTED_BY_A_TEST"
AGENTS = (
    "ray::DashboardA",
    "ray::RuntimeEnv",
    "ray/dashboard/agent.py",
    "runtime_env/agent/main.py",
)
"""Ray's agents by the names that they take, and by their files as long as they have not."""


def marked() -> dict[str, str]:
    """What the environment of a command needs so that its processes are found."""
    return {MARK: str(os.getpid())}


def started_here() -> dict[int, str]:
    """The processes that this test started, and theirs: what carries its mark, with their names."""
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            name = f"{(path / 'comm').read_text().strip()} {command}"
        except OSError:
            continue
        if f"{MARK}={os.getpid()}".encode() in environment:
            found[int(path.name)] = name
    return found


def left_running() -> list[str]:
    """What still runs a minute later and could write to the run; empty as soon as nothing does.

    Two idle agents of Ray's can outlive a raylet that is killed; that is Ray's own defect.
    """
    deadline = time.monotonic() + 60
    while busy := [n for n in started_here().values() if not any(a in n for a in AGENTS)]:
        if time.monotonic() > deadline:
            return busy
        time.sleep(0.1)
    return []


def tells_its_gpus(*given: Any) -> None:
    """In place of what a process should do: say which GPUs PyTorch would find there."""
    raise RunError(f"GPUs: {os.environ['CUDA_VISIBLE_DEVICES']}")
