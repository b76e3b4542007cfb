"""Low bits of whole numbers, packed: those of one width after those of another.

A tail of w = 8 a + b bits is cut from its low end into a bytes and b bits. Of one width come first
the lowest bytes of all tails, then the next, and last the b bits, lowest first, in bytes.
"""

from collections.abc import Iterator

import numpy as np

from fedspeech.diff.fields import Fields

BLOCK = 2**17
"""Numbers that get their tails at a time; they stay in the cache."""
WIDTHS = 32
"""A tail has fewer bits."""


def pack(numbers: np.ndarray, widths: np.ndarray) -> bytes:
    """The lowest `widths` bits (uint8) of the numbers (uint32)."""
    # Places are ten times as fast as a mask.
    groups = ((width, numbers[which.nonzero()]) for width, which in _groups(widths))
    return b"".join(_packed(some, width) for width, some in groups)


def take(fields: Fields, symbols: np.ndarray, least: np.ndarray, widths: np.ndarray) -> None:
    """Turn symbols into numbers where they are, with the tails that `pack` wrote.

    `least` (of the symbols' dtype) is the number of each symbol without its tail, `widths` (uint8)
    the tail's bits.
    """
    blocks = [symbols[first : first + BLOCK] for first in range(0, len(symbols), BLOCK)]
    counts = np.zeros(WIDTHS, np.int64)
    for block in blocks:
        counts += np.bincount(widths[block], minlength=WIDTHS)
    tails = [_Tails(fields, int(counts[w]), w) for w in range(1, WIDTHS) if counts[w]]
    for block in blocks:
        widths_here = widths[block]
        block[:] = least[block]
        for one in tails:
            (places,) = (widths_here == one.width).nonzero()
            if len(places):
                block[places] |= one.next(len(places)).astype(block.dtype, copy=False)


def _groups(widths: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each width that there is, but for 0, and which numbers have it (bool)."""
    for width in range(1, int(widths.max(initial=0)) + 1):
        if (which := widths == width).any():
            yield width, which


def _packed(numbers: np.ndarray, width: int) -> bytes:
    planes, rest = divmod(width, 8)
    bytes_of = numbers.astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)
    parts = [bytes_of[:, plane].tobytes() for plane in range(planes)]
    if rest:
        parts.append(_joined(bytes_of[:, planes], rest))
    return b"".join(parts)


class _Tails:
    """The tails of one width, read some at a time."""

    def __init__(self, fields: Fields, count: int, width: int) -> None:
        self.width, self._at = width, 0
        planes, self._bits = divmod(width, 8)
        self._planes = [np.frombuffer(fields.take(count), np.uint8) for _ in range(planes)]
        self._rest = fields.take(_bytes(count, self._bits))

    def next(self, count: int) -> np.ndarray:
        """As many as that, uint32."""
        first, last = self._at, self._at + count
        self._at = last
        bytes_of = np.zeros((count, 4), np.uint8)
        for place, plane in enumerate(self._planes):
            bytes_of[:, place] = plane[first:last]
        if self._bits:
            # Eight of them begin with a byte.
            before = first % 8
            tight = self._rest[first // 8 * self._bits : _bytes(last, self._bits)]
            bytes_of[:, len(self._planes)] = _parted(tight, before + count, self._bits)[before:]
        return bytes_of.view("<u4").reshape(-1)


def _joined(numbers: np.ndarray, bits: int) -> bytes:
    """The lowest `bits` bits of the numbers (uint8), one after another."""
    # Eight times so many bits are so many bytes.
    eights = np.zeros((-(-len(numbers) // 8), 8), np.uint8)
    eights.reshape(-1)[: len(numbers)] = numbers & (1 << bits) - 1
    joined = np.zeros(len(eights), "<u8")
    for place in range(8):
        joined |= eights[:, place].astype("<u8") << np.uint64(bits * place)
    tight = joined.view(np.uint8).reshape(-1, 8)[:, :bits]
    return tight.tobytes()[: _bytes(len(numbers), bits)]


def _parted(tight: memoryview, count: int, bits: int) -> np.ndarray:
    """The numbers (uint8) that `_joined` put one after another."""
    # Eight bytes are read for `bits` of them.
    padded = np.zeros(len(tight) + 16, np.uint8)
    padded[: len(tight)] = np.frombuffer(tight, np.uint8)
    joined = np.ndarray(-(-count // 8), "<u8", padded, strides=(bits,)).copy()
    eights = np.empty((len(joined), 8), np.uint8)
    for place in range(8):
        eights[:, place] = joined >> np.uint64(bits * place) & np.uint64((1 << bits) - 1)
    return eights.reshape(-1)[:count]


def _bytes(count: int, bits: int) -> int:
    """That hold so many numbers of so many bits."""
    return -(-count * bits // 8)
