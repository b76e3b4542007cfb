"""Bytes and whole numbers in a row, read with every length checked first."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from fedspeech.errors import DiffError

Step = TypeVar("Step")

LONGEST_VARINT = 5
"""Bytes; 35 bits hold every number of the format."""


def varint(number: int) -> bytes:
    """A number of at least 0, seven bits a byte, lowest first; bit 7 says that more follow."""
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


class Fields:
    """Reads what was written one field after another. Raises DiffError where it ends too soon."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, not copied."""
        if count > self.left:
            raise damaged(f"{count} bytes expected, {self.left} left")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """The next byte as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next number, as `varint` wrote it."""
        number = 0
        for place in range(LONGEST_VARINT):
            byte = self.byte()
            number |= (byte & 127) << 7 * place
            if byte < 128:
                return number
        raise damaged(f"a number of more than {LONGEST_VARINT} bytes")

    def end(self) -> None:
        """Raise DiffError unless everything was read."""
        if self.left:
            raise damaged(f"{self.left} bytes more than expected")


class Left(Protocol):
    """Something that is read to its end."""

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""


def metered(source: Left, steps: Iterable[Step]) -> list[tuple[Step, int]]:
    """What each step reads from the source, and the bytes that it takes."""
    found, before = [], source.left
    for step in steps:
        found.append((step, before - source.left))
        before = source.left
    return found


def damaged(what: str) -> DiffError:
    """What to raise where the bytes cannot be those that an encoder wrote."""
    return DiffError(f"the diff is damaged: {what}")
