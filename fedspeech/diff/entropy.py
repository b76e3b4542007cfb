"""Streams of whole numbers below 2**32 in few bytes.

Each number is a symbol that is entropy-coded and low bits as they are (`symbols.py`). How many bits
a symbol keeps is chosen for each stream by the measured size; and whether its code is of order 0
(`frequencies.py`), or of order 1 (`order_1.py`).
"""

from collections.abc import Sequence

import numpy as np

from fedspeech.diff import frequencies, order_1, rans, symbols, tails
from fedspeech.diff.fields import Fields, damaged, metered, varint
from fedspeech.diff.symbols import MOST_KEPT

NEARLY = 1 / 1024
SAMPLE = 2**15
"""Numbers at the beginning of a stream that tell whether order 1 is worth its time."""
WORTH = 1 / 32
"""Of the size, what order 1 has to save."""
SYMBOLS_PER_BYTE = 2048
"""No more can come out of a byte (FORMAT.md says why); what claims to be more is damaged."""


def encode(streams: Sequence[np.ndarray]) -> bytes:
    """The streams' numbers (uint32). Their counts are not in it; empty streams leave no trace."""
    tables, coded, low = [], [], []
    for numbers in filter(len, streams):
        if is_order_1(numbers):
            _, codes = order_1.fit(numbers)
            tables.append(order_1.tables_bytes(codes))
            coded.append((numbers.astype(np.uint16), order_1.side_by_side(codes)))
            continue
        finest, widths = symbols.symbols_of(numbers, MOST_KEPT)
        _, kept, lowest, table = _fit(finest)
        coarse, widths = symbols.coarser(finest, widths, kept)
        tables.append(frequencies.table_bytes(kept, lowest, table))
        coded.append((coarse - np.uint16(lowest), table))
        low.append(tails.pack(numbers, widths))
    states, words = rans.encode(coded)
    number = varint(len(words))
    return b"".join([*tables, number, _bytes(states, "<u4"), _bytes(words, "<u2"), *low])


def about(streams: Sequence[np.ndarray]) -> int:
    """The bytes that `encode` gives, within some in a thousand, at a fraction of its work."""
    used = [numbers for numbers in streams if len(numbers)]
    cost = sum(
        order_1.fit(numbers)[0] if is_order_1(numbers) else _fit_order_0(numbers)
        for numbers in used
    )
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
    read = metered(
        decoder,
        (
            _read_symbols(decoder, count, *table) if table else np.empty(0, np.uint16)
            for count, (table, _) in zip(counts, tables, strict=True)
        ),
    )
    decoder.end()
    numbers = metered(
        fields,
        (
            symbols.take(fields, one, *table[:2]) if table else one
            for (one, _), (table, _) in zip(read, tables, strict=True)
        ),
    )
    fields.end()
    together = zip(numbers, read, tables, strict=True)
    return [(found, low + words + table) for (found, low), (_, words), (_, table) in together]


def _read_symbols(
    decoder: rans.Decoder, count: int, kept: int, lowest: int, table: np.ndarray
) -> np.ndarray:
    """Of a stream, where its numbers will be: both together would be half as much again."""
    dtype = symbols.dtype_of(kept, lowest + table.shape[-1] - 1)
    return decoder.read(count, table, dtype)


def _bytes(array: np.ndarray, kind: str) -> bytes:
    return array.astype(kind, copy=False).tobytes()


def _fit(finest: np.ndarray) -> tuple[int, int, int, np.ndarray]:
    """Size (`_cost`), bits kept, lowest symbol and frequencies from there on, of the smallest code.

    It is told by the symbols with the most bits kept. Of codes that are nearly as small, the one
    with the fewest tails: it is the fastest.
    """
    counts = np.bincount(finest)
    scale = frequencies.scale_of(len(finest))
    codes: list[tuple[int, int, int, np.ndarray]] = []
    for kept in range(MOST_KEPT + 1):
        coarse = symbols.coarser_of(kept)[0][: len(counts)]
        histogram = np.zeros(int(coarse[-1]) + 1, np.int64)
        np.add.at(histogram, coarse, counts)
        lowest, table = frequencies.normalized(histogram, scale)
        cost = frequencies.cost(histogram[lowest:], kept, lowest, table)
        codes.append((cost, kept, lowest, table))
    enough = min(cost for cost, *_ in codes) * (1 + NEARLY)
    cost, kept, lowest, table = next(one for one in reversed(codes) if one[0] <= enough)
    return cost, kept, lowest, table


def _fit_order_0(numbers: np.ndarray) -> int:
    return _fit(symbols.symbols_of(numbers, MOST_KEPT)[0])[0]


def is_order_1(numbers: np.ndarray) -> bool:
    """Whether a stream's code is of order 1: of many small numbers that follow from each other."""
    if len(numbers) < SAMPLE or int(numbers.max()) >= 2 << MOST_KEPT:
        return False
    sample = numbers[:SAMPLE]
    return order_1.fit(sample)[0] < (1 - WORTH) * _fit_order_0(sample)


def _read_table(fields: Fields, count: int) -> tuple[int, int, np.ndarray]:
    """Bits kept, lowest symbol and frequencies for a stream of `count` numbers."""
    if (kept := fields.byte()) == order_1.MARK:
        return order_1.read_tables(fields)
    return frequencies.read_table(fields, kept, frequencies.scale_of(count))
