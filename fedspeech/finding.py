"""One line of what `fedspeech doctor` has looked at."""

import shutil
from pathlib import Path
from typing import NamedTuple

from fedspeech.errors import DiskError
from fedspeech.tensors import try_writing

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

    def __str__(self) -> str:
        return f"{self.status:<9}{self.name}: {self.found}{'; ' if self.todo else ''}{self.todo}"


def disk(what: str, folder: Path) -> Finding:
    """What is free where a folder is, or will be, and whether this user may write there."""
    there = next(place for place in (folder, *folder.absolute().parents) if _is_seen(place))
    try:
        try_writing(there)
    except DiskError as error:
        return Finding(what, str(error), "give it to the user who runs this, or name another")
    free = shutil.disk_usage(there).free
    todo = f"at least {gib(LEAST_DISK)} have to be free" if free < LEAST_DISK else ""
    return Finding(what, f"{gib(free)} free in {there}", todo)


def _is_seen(place: Path) -> bool:
    """Whether a folder is there; one in another user's folder may not even be looked for."""
    try:
        return place.is_dir()
    except OSError:
        return False


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB"
