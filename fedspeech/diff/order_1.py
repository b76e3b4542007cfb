"""A code of order 1: a table of frequencies for each small number that may come before."""

from collections.abc import Sequence

import numpy as np

from fedspeech.diff.fields import Fields, damaged
from fedspeech.diff.frequencies import cost, normalized, read_table, table_bytes
from fedspeech.diff.symbols import MOST_KEPT

CONTEXTS, CONTEXT_SCALE = 16, 12
"""Tables, and what their frequencies sum to, so little that they stay in the cache."""
ONCE = np.ones(1, np.int64)
MARK = MOST_KEPT + 1
"""Stands where the kept bits of a table would, before the tables of a stream of order 1."""


def fit(numbers: np.ndarray) -> tuple[int, list[tuple[int, np.ndarray]]]:
    """Size (`cost`); of each context the lowest symbol and frequencies from there on."""
    size = int(numbers.max()) + 1
    places = numbers.astype(np.intp)
    places[1:] += np.minimum(places[:-1], CONTEXTS - 1) * size
    histograms = np.bincount(places, minlength=CONTEXTS * size).reshape(CONTEXTS, size)
    # The first number of a lane may be any of them, and has context 0.
    histograms[0] += histograms.any(axis=0)
    total, codes = 0, []
    for histogram in histograms:
        # A context that never occurs has a table all the same.
        lowest, frequencies = normalized(histogram if histogram.any() else ONCE, CONTEXT_SCALE)
        known = histogram[lowest : lowest + len(frequencies)]
        total += cost(known, MOST_KEPT, lowest, frequencies)
        codes.append((lowest, frequencies))
    return total, codes


def side_by_side(codes: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Frequencies (int64) of all symbols from 0 on, a row for each context."""
    size = max(lowest + len(frequencies) for lowest, frequencies in codes)
    rows = np.zeros((len(codes), size), np.int64)
    for row, (lowest, frequencies) in zip(rows, codes, strict=True):
        row[lowest : lowest + len(frequencies)] = frequencies
    return rows


def tables_bytes(codes: Sequence[tuple[int, np.ndarray]]) -> bytes:
    """The tables of all contexts, after their mark."""
    return bytes([MARK]) + b"".join(table_bytes(MOST_KEPT, *code) for code in codes)


def read_tables(fields: Fields) -> tuple[int, int, np.ndarray]:
    """What `tables_bytes` wrote, after its mark: kept bits, the lowest symbol, and all rows."""
    codes = [read_table(fields, fields.byte(), CONTEXT_SCALE) for _ in range(CONTEXTS)]
    if any(kept != MOST_KEPT for kept, *_ in codes):
        raise damaged("tables that do not go together")
    return MOST_KEPT, 0, side_by_side([code[1:] for code in codes])
