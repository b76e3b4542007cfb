"""One line of what `fedspeech doctor` has looked at."""

import shutil
from pathlib import Path
from typing import NamedTuple

LEAST_DISK = 2**30


class Finding(NamedTuple):
    """One line: what was looked at, what was found, and what to do where that is not enough."""

    name: str
    found: str
    todo: str = ""
    needed: bool = True
    """Whether nothing runs without it."""

    @property
    def status(self) -> str:
        """`ok`, `missing`, or `optional` for what is missing and not needed by everybody."""
        if not self.todo:
            return "ok"
        return "missing" if self.needed else "optional"


def disk(what: str, folder: Path) -> Finding:
    """What is free where a folder is, or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    todo = f"at least {gib(LEAST_DISK)} have to be free" if free < LEAST_DISK else ""
    return Finding(what, f"{gib(free)} free in {there}", todo)


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB"
