"""Low bits of whole numbers, packed: those of one width after those of another.

A tail of w = 8 a + b bits is cut from its low end into a bytes and b bits. Of one width come first
the lowest bytes of all tails, then the next, and last the b bits, lowest first, in bytes.
"""

from collections.abc import Iterator

import numpy as np

from fedspeech.diff.fields import Fields

BLOCK = 2**15
"""Numbers that get their tails at a time; they stay in the cache."""


def pack(numbers: np.ndarray, widths: np.ndarray) -> bytes:
    """The lowest `widths` bits (uint8) of the numbers (uint32)."""
    # Places are ten times as fast as a mask.
    groups = ((width, numbers[which.nonzero()]) for width, which in _groups(widths))
    return b"".join(_packed(some, width) for width, some in groups)


def take(fields: Fields, numbers: np.ndarray, widths: np.ndarray) -> None:
    """Read what `pack` wrote into the lowest bits of the numbers, which are zero there."""
    for width, which in _groups(widths):
        tails = _unpacked(fields, int(which.sum()), width).astype(numbers.dtype, copy=False)
        taken = 0
        for first in range(0, len(numbers), BLOCK):
            (places,) = which[first : first + BLOCK].nonzero()
            numbers[first : first + BLOCK][places] |= tails[taken : taken + len(places)]
            taken += len(places)


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


def _unpacked(fields: Fields, count: int, width: int) -> np.ndarray:
    planes, rest = divmod(width, 8)
    bytes_of = np.zeros((count, 4), np.uint8)
    for plane in range(planes):
        bytes_of[:, plane] = np.frombuffer(fields.take(count), np.uint8)
    if rest:
        bytes_of[:, planes] = _parted(fields.take(_bytes(count, rest)), count, rest)
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
