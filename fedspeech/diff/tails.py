"""Low bits of whole numbers, packed: those of one width after those of another.

A tail of w = 8 a + b bits is cut from its low end into a bytes and b bits. Of one width come first
the lowest bytes of all tails, then the next, and last the b bits, lowest first, in bytes.
"""

import numpy as np

from fedspeech.diff.fields import Fields


def pack(numbers: np.ndarray, widths: np.ndarray) -> bytes:
    """The lowest `widths` bits (uint8) of the numbers (uint32)."""
    some = np.flatnonzero(widths)
    numbers, widths = numbers[some], widths[some]
    used = np.flatnonzero(np.bincount(widths))
    return b"".join([_packed(numbers[widths == width], int(width)) for width in used])


def take(fields: Fields, numbers: np.ndarray, widths: np.ndarray) -> None:
    """Read what `pack` wrote into the lowest bits of the numbers, which are zero there."""
    some = np.flatnonzero(widths)
    widths = widths[some]
    for width in np.flatnonzero(np.bincount(widths)):
        places = some[widths == width]
        numbers[places] |= _unpacked(fields, len(places), int(width))


def _packed(numbers: np.ndarray, width: int) -> bytes:
    planes, rest = divmod(width, 8)
    bytes_of = numbers.astype("<u4").view(np.uint8).reshape(-1, 4)
    parts = [bytes_of[:, plane].tobytes() for plane in range(planes)]
    # Eight times `rest` bits are `rest` bytes.
    eights = np.zeros((-(-len(numbers) // 8), 8), "<u8")
    eights.reshape(-1)[: len(numbers)] = numbers >> 8 * planes & (1 << rest) - 1
    eights <<= np.arange(8, dtype="<u8") * np.uint64(rest)
    joined = np.bitwise_or.reduce(eights, axis=1).view(np.uint8).reshape(-1, 8)
    parts.append(joined[:, :rest].tobytes()[: _bytes(len(numbers), rest)])
    return b"".join(parts)


def _unpacked(fields: Fields, count: int, width: int) -> np.ndarray:
    planes, rest = divmod(width, 8)
    numbers = np.zeros(count, np.uint32)
    for plane in range(planes):
        numbers |= np.frombuffer(fields.take(count), np.uint8).astype(np.uint32) << 8 * plane
    size = _bytes(count, rest)
    joined = np.zeros((-(-count // 8), 8), np.uint8)
    padded = np.zeros(len(joined) * rest, np.uint8)
    padded[:size] = np.frombuffer(fields.take(size), np.uint8)
    joined[:, :rest] = padded.reshape(-1, rest) if rest else 0
    shifts = np.arange(8, dtype="<u8") * np.uint64(rest)
    eights = joined.view("<u8") >> shifts & np.uint64((1 << rest) - 1)
    return numbers | eights.reshape(-1)[:count].astype(np.uint32) << 8 * planes


def _bytes(count: int, bits: int) -> int:
    """That hold so many numbers of so many bits."""
    return -(-count * bits // 8)
