"""Whole numbers below 2**32 in few bytes: an entropy-coded symbol, and low bits as they are.

A number v of b bits keeps its leading one and the `kept` bits after it; its tail is the other
w = max(b - 1 - kept, 0) bits. The symbol (w << kept) + (v >> w) grows with v, so that small numbers
are their own symbols. How many bits are kept is chosen for each stream by the measured size.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from fedspeech.diff import rans, tails
from fedspeech.diff.fields import Fields, damaged, metered, varint

MOST_KEPT = 8
BLOCK = 2**15
"""Numbers whose symbols are computed at a time; they stay in the cache."""
LEAST_SCALE, MOST_SCALE = 8, 14
NEARLY = 1 / 1024
SPARE = 8
"""A symbol has at most 1 - 2**-SPARE of the whole sum, so that no symbol costs nothing."""
SYMBOLS_PER_BYTE = 2048
"""No more can come out of a byte (FORMAT.md says why); what claims to be more is damaged."""


def encode(streams: Sequence[np.ndarray]) -> bytes:
    """The streams' numbers (uint32). Their counts are not in it; empty streams leave no trace."""
    tables, coded, low = [], [], []
    for numbers in filter(len, streams):
        finest, widths = _symbols(numbers, MOST_KEPT)
        _, kept, lowest, frequencies = _fit(finest)
        symbols, widths = _coarser(finest, widths, kept)
        tables.append(_table_bytes(kept, lowest, frequencies))
        coded.append((symbols - np.uint16(lowest), frequencies))
        low.append(tails.pack(numbers, widths))
    states, words = rans.encode(coded)
    number = varint(len(words))
    return b"".join([*tables, number, _bytes(states, "<u4"), _bytes(words, "<u2"), *low])


def about(streams: Sequence[np.ndarray]) -> int:
    """The bytes that `encode` gives, within some in a thousand, at a fraction of its work."""
    used = [numbers for numbers in streams if len(numbers)]
    cost = sum(_fit(_symbols(numbers, MOST_KEPT)[0])[0] for numbers in used)
    return (cost >> 19) + rans.LANE_BYTES * rans.lanes(sum(map(len, used)))


def decode(data: bytes | memoryview, counts: Sequence[int]) -> list[np.ndarray]:
    """The streams' numbers (uint16 or uint32).

    Raises DiffError where the bytes are none that `encode` gives.
    """
    return [numbers for numbers, _ in _decoded(data, counts)]


def sizes(data: bytes | memoryview, counts: Sequence[int]) -> list[int]:
    """Bytes of each stream: its table and tails, and its part of the words and of the states.

    What is left of the states is what lanes cost. Raises DiffError as `decode` does.
    """
    return [size for _, size in _decoded(data, counts)]


def _decoded(data: bytes | memoryview, counts: Sequence[int]) -> list[tuple[np.ndarray, int]]:
    """Of each stream its numbers and its bytes."""
    if sum(counts) > SYMBOLS_PER_BYTE * len(data):
        raise damaged(f"{sum(counts)} numbers in {len(data)} bytes")
    fields = Fields(data)
    tables = metered(fields, (_read_table(fields, count) if count else None for count in counts))
    words = fields.varint()
    states = np.frombuffer(fields.take(4 * rans.lanes(sum(counts))), "<u4")
    decoder = rans.Decoder(states, np.frombuffer(fields.take(2 * words), "<u2"))
    symbols = metered(
        decoder,
        (
            decoder.read(count, table[2]) if table else np.empty(0, np.uint16)
            for count, (table, _) in zip(counts, tables, strict=True)
        ),
    )
    decoder.end()
    words_of = [size for _, size in symbols]
    # Symbols go as numbers come: together they would be half as much again.
    reads = (symbols.pop(0)[0] for _ in counts)
    numbers = metered(
        fields,
        (
            _numbers(fields, read, *table[:2]) if table else read
            for read, (table, _) in zip(reads, tables, strict=True)
        ),
    )
    fields.end()
    together = zip(numbers, words_of, tables, strict=True)
    return [(found, low + words + table) for (found, low), words, (_, table) in together]


def _bytes(array: np.ndarray, kind: str) -> bytes:
    return array.astype(kind, copy=False).tobytes()


def _symbols(numbers: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (uint16) and widths of the tails (uint8)."""
    if int(numbers.max(initial=0)) < 2 << kept:
        return numbers.astype(np.uint16), np.zeros(len(numbers), np.uint8)
    symbols, widths = np.empty(len(numbers), np.uint16), np.empty(len(numbers), np.uint8)
    for first in range(0, len(numbers), BLOCK):
        block = numbers[first : first + BLOCK]
        # The exponent of a float64 is the number of bits; exact for what has at most 53.
        floats = np.maximum(block, np.uint32(1 << kept)).astype(np.float64)
        width = (floats.view(np.int64) >> 52) - (1023 + kept)
        widths[first : first + BLOCK] = width
        symbols[first : first + BLOCK] = (width << kept) + (block >> width)
    return symbols, widths


def _coarser(finest: np.ndarray, widths: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and widths with fewer bits kept, by those with the most."""
    if kept == MOST_KEPT or int(finest.max()) < 2 << kept:
        return finest, widths
    symbols_of, widths_of = _coarser_of(kept)
    return symbols_of[finest], widths_of[finest]


@cache
def _coarser_of(kept: int) -> tuple[np.ndarray, np.ndarray]:
    """By each of the finest symbols, the symbol and its width where `kept` bits are kept."""
    return _symbols(_lowest_numbers(MOST_KEPT), kept)


def _widths(symbols: np.ndarray, kept: int) -> np.ndarray:
    """Of the symbols' tails, uint8."""
    widths: np.ndarray = (np.maximum(symbols >> kept, 1) - 1).astype(np.uint8)
    return widths


@cache
def _lowest_numbers(kept: int) -> np.ndarray:
    """The least number of each symbol, uint32."""
    symbols = np.arange((32 - kept) * (1 << kept) + (1 << kept), dtype=np.uint32)
    widths = _widths(symbols, kept).astype(np.uint32)
    return (symbols - (widths << kept)) << widths


def _fit(finest: np.ndarray) -> tuple[int, int, int, np.ndarray]:
    """Size (`_cost`), bits kept, lowest symbol and frequencies from there on, of the smallest code.

    It is told by the symbols with the most bits kept. Of codes that are nearly as small, the one
    with the fewest tails: it is the fastest.
    """
    counts = np.bincount(finest)
    scale = _scale(len(finest))
    codes: list[tuple[int, int, int, np.ndarray]] = []
    for kept in range(MOST_KEPT + 1):
        symbols = _coarser_of(kept)[0][: len(counts)]
        histogram = np.zeros(int(symbols[-1]) + 1, np.int64)
        np.add.at(histogram, symbols, counts)
        lowest, frequencies = _normalized(histogram, scale)
        cost = _cost(histogram[lowest:], kept, lowest, frequencies)
        codes.append((cost, kept, lowest, frequencies))
    enough = min(cost for cost, *_ in codes) * (1 + NEARLY)
    cost, kept, lowest, frequencies = next(one for one in reversed(codes) if one[0] <= enough)
    return cost, kept, lowest, frequencies


def _scale(count: int) -> int:
    """Frequencies sum to two to the power of this."""
    return min(max(count.bit_length(), LEAST_SCALE), MOST_SCALE)


def _normalized(histogram: np.ndarray, scale: int) -> tuple[int, np.ndarray]:
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


def _cost(histogram: np.ndarray, kept: int, lowest: int, frequencies: np.ndarray) -> int:
    """Size in 2**-16 bits: whole numbers, so that every machine chooses the same."""
    scale = int(frequencies.sum()).bit_length() - 1
    lengths = np.rint(np.log2(np.maximum(frequencies, 1)) * 65536).astype(np.int64)
    counts = np.zeros(len(frequencies), np.int64)
    counts[: len(histogram)] = histogram
    widths = _widths(np.arange(lowest, lowest + len(frequencies)), kept).astype(np.int64)
    symbols = int((counts * ((scale + widths) * 65536 - lengths)).sum())
    return symbols + _table_bits(lowest, frequencies) * 65536


def _table_bits(lowest: int, frequencies: np.ndarray) -> int:
    """Of `_table_bytes`, but for what fills up the last byte of each width's tails."""
    head = 1 + len(varint(lowest)) + len(varint(len(frequencies)))
    _, lengths = np.frexp(frequencies)
    return 8 * (head + (len(frequencies) + 1) // 2) + int(np.maximum(lengths - 1, 0).sum())


def _table_bytes(kept: int, lowest: int, frequencies: np.ndarray) -> bytes:
    """Bits kept, lowest symbol, number of symbols; of each frequency its bits' number, and tail."""
    numbers = frequencies.astype(np.uint32)
    lengths, widths = _bit_lengths(numbers)
    even = np.append(lengths, np.uint8(0))[: len(lengths) + len(lengths) % 2]
    nibbles = even[::2] | even[1::2] << 4
    head = bytes([kept]) + varint(lowest) + varint(len(frequencies))
    return b"".join([head, nibbles.tobytes(), tails.pack(numbers, widths)])


def _bit_lengths(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of bits (0 for 0), and of those after the leading one; uint8."""
    symbols, widths = _symbols(numbers, 0)
    return symbols.astype(np.uint8), widths


def _read_table(fields: Fields, count: int) -> tuple[int, int, np.ndarray]:
    """What `_table_bytes` wrote for a stream of `count` numbers."""
    kept, lowest, size = fields.byte(), fields.varint(), fields.varint()
    if kept > MOST_KEPT or lowest + size > len(_lowest_numbers(kept)):
        raise damaged("a table of symbols that there are not")
    pairs = np.frombuffer(fields.take((size + 1) // 2), np.uint8)
    lengths = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[:size]
    frequencies = _numbers(fields, lengths.astype(np.uint16), 0, 0).astype(np.int64)
    sum, most = 1 << _scale(count), int(frequencies.max(initial=0))
    if int(frequencies.sum()) != sum or most > sum - (sum >> SPARE):
        raise damaged("frequencies that do not sum up")
    return kept, lowest, frequencies


def _numbers(fields: Fields, symbols: np.ndarray, kept: int, lowest: int) -> np.ndarray:
    """The numbers whose symbols, less the lowest, are these; their tails come next.

    uint16, or uint32 where one may be larger.
    """
    symbols = symbols + np.uint16(lowest)
    highest = int(symbols.max(initial=0))
    if highest < 2 << kept:
        return symbols
    lowest_numbers = _lowest_numbers(kept)
    if highest + 1 < len(lowest_numbers) and lowest_numbers[highest + 1] <= 2**16:
        lowest_numbers = lowest_numbers.astype(np.uint16)
    numbers: np.ndarray = lowest_numbers[symbols]
    tails.take(fields, numbers, _widths(symbols, kept))
    return numbers
