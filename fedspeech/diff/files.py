"""A diff in a file: what is none is told by its first bytes, however long the file is."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedspeech.diff import wire
from fedspeech.errors import DiffError

PIECE = 1 << 20
"""Bytes that are read at a time: nobody vouches yet for how many a header promises."""


def read(path: Path) -> bytes:
    """The bytes of the diff in a file: those that its header promises, and one more if there is.

    Raises DiffError where the file cannot be read, or does not begin as a diff.
    """
    try:
        with path.open("rb") as file:
            first = file.read(wire.PREFIX.size)
            more = wire.promised(first) + 1 - len(first)
            return first + b"".join(_pieces(file, more))
    except OSError as error:
        raise DiffError(f"{path}: not a readable diff: {error.strerror}") from None
    except DiffError as error:
        raise DiffError(f"{path}: {error}") from None


def _pieces(file: BinaryIO, most: int) -> Iterator[bytes]:
    while piece := file.read(max(min(most, PIECE), 0)):
        most -= len(piece)
        yield piece
