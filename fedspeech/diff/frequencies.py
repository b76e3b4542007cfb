"""Tables of frequencies: what a stream's symbols cost by them, and how they are written."""

import numpy as np

from fedspeech.diff import symbols, tails
from fedspeech.diff.fields import Fields, damaged, varint
from fedspeech.diff.symbols import MOST_KEPT

LEAST_SCALE, MOST_SCALE = 8, 14
SPARE = 8
"""A symbol has at most 1 - 2**-SPARE of the whole sum, so that no symbol costs nothing."""


def scale_of(count: int) -> int:
    """Frequencies sum to two to the power of this."""
    return min(max(count.bit_length(), LEAST_SCALE), MOST_SCALE)


def normalized(histogram: np.ndarray, scale: int) -> tuple[int, np.ndarray]:
    """The lowest symbol, and frequencies (int64) from there on; there are at least two symbols."""
    used = np.flatnonzero(histogram)
    highest = max(int(used[-1]), 1)
    lowest = min(int(used[0]), highest - 1)
    counts = np.zeros(highest + 1 - lowest, np.int64)
    counts[used - lowest] = histogram[used]
    frequencies = (counts > 0) + counts * ((1 << scale) - len(used)) // counts.sum()
    first = int(frequencies.argmax())
    frequencies[first] += (1 << scale) - frequencies.sum()
    most = (1 << scale) - (1 << scale - SPARE)
    surplus = max(int(frequencies[first]) - most, 0)
    frequencies[first] -= surplus
    frequencies[first - 1 if first else 1] += surplus
    return lowest, frequencies


def cost(histogram: np.ndarray, kept: int, lowest: int, frequencies: np.ndarray) -> int:
    """Size in 2**-16 bits: whole numbers, so that every machine chooses the same."""
    scale = int(frequencies.sum()).bit_length() - 1
    lengths = np.rint(np.log2(np.maximum(frequencies, 1)) * 65536).astype(np.int64)
    counts = np.zeros(len(frequencies), np.int64)
    counts[: len(histogram)] = histogram
    widths = symbols.widths_of(np.arange(lowest, lowest + len(frequencies)), kept).astype(np.int64)
    coded = int((counts * ((scale + widths) * 65536 - lengths)).sum())
    return coded + _table_bits(lowest, frequencies) * 65536


def _table_bits(lowest: int, frequencies: np.ndarray) -> int:
    """Of `table_bytes`, but for what fills up the last byte of each width's tails."""
    head = 1 + len(varint(lowest)) + len(varint(len(frequencies)))
    _, lengths = np.frexp(frequencies)
    return 8 * (head + (len(frequencies) + 1) // 2) + int(np.maximum(lengths - 1, 0).sum())


def table_bytes(kept: int, lowest: int, frequencies: np.ndarray) -> bytes:
    """Bits kept, lowest symbol, number of symbols; of each frequency its bits' number, and tail."""
    numbers = frequencies.astype(np.uint32)
    lengths, widths = symbols.bit_lengths(numbers)
    even = np.append(lengths, np.uint8(0))[: len(lengths) + len(lengths) % 2]
    nibbles = even[::2] | even[1::2] << 4
    head = bytes([kept]) + varint(lowest) + varint(len(frequencies))
    return b"".join([head, nibbles.tobytes(), tails.pack(numbers, widths)])


def read_table(fields: Fields, kept: int, scale: int) -> tuple[int, int, np.ndarray]:
    """What `table_bytes` wrote, after its first byte."""
    lowest, size = fields.varint(), fields.varint()
    if kept > MOST_KEPT or lowest + size > len(symbols.lowest_numbers(kept)):
        raise damaged("a table of symbols that there are not")
    pairs = np.frombuffer(fields.take((size + 1) // 2), np.uint8)
    lengths = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[:size]
    frequencies = symbols.take(fields, lengths.astype(np.uint16), 0, 0).astype(np.int64)
    sum, most = 1 << scale, int(frequencies.max(initial=0))
    if int(frequencies.sum()) != sum or most > sum - (sum >> SPARE):
        raise damaged("frequencies that do not sum up")
    return kept, lowest, frequencies
