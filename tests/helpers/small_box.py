"""Python code in a memory control group of its own, version 1 or 2, without swap."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOTS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
)
JOIN = """
import os, sys
from pathlib import Path
Path(sys.argv.pop(1)).write_text(str(os.getpid()))
"""


@contextmanager
def group(limit: int) -> Iterator[tuple[Path, Path]]:
    """A new group's folder, and the file that tells the most it took; skips where none can be."""
    if any(line.split()[0] != "Filename" for line in Path("/proc/swaps").read_text().splitlines()):
        pytest.skip("there is swap, which would hide what a small box lacks")
    for root, most, peak in ROOTS:
        place = root / f"fedspeech-test-{id(root)}"
        try:
            place.mkdir()
        except OSError:
            continue
        try:
            if (place / most).exists():
                (place / most).write_text(str(limit))
                yield place, place / peak
                return
        finally:
            place.rmdir()
    pytest.skip("no memory control group can be made here")


def anonymous_bytes(place: Path) -> int:
    """What a group's processes hold now, without files in memory that could be let go."""
    lines = (place / "memory.stat").read_text().splitlines()
    numbers = {name: int(value) for name, value in map(str.split, lines)}
    return numbers.get("total_rss", numbers.get("anon", 0))


def run(code: str, limit: int, *arguments: object) -> tuple[subprocess.CompletedProcess[str], int]:
    """The finished process, and the most bytes that its group took, files in memory included."""
    with group(limit) as (place, peak):
        done = subprocess.run(
            [sys.executable, "-c", JOIN + code, str(place / "cgroup.procs"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=280,
        )
        return done, int(peak.read_text())
