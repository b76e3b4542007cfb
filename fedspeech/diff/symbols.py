"""Whole numbers below 2**32 as a symbol that is entropy-coded, and low bits as they are.

A number v of b bits keeps its leading one and the `kept` bits after it; its tail is the other
w = max(b - 1 - kept, 0) bits. The symbol (w << kept) + (v >> w) grows with v, so that small numbers
are their own symbols.
"""

from functools import cache

import numpy as np

from fedspeech.diff import tails
from fedspeech.diff.fields import Fields

MOST_KEPT = 8
BLOCK = 2**15
"""Numbers whose symbols are computed at a time; they stay in the cache."""


def symbols_of(numbers: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
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


def coarser(finest: np.ndarray, widths: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and widths with fewer bits kept, by those with the most."""
    if kept == MOST_KEPT or int(finest.max()) < 2 << kept:
        return finest, widths
    by_symbol, widths = coarser_of(kept)
    return by_symbol[finest], widths[finest]


@cache
def coarser_of(kept: int) -> tuple[np.ndarray, np.ndarray]:
    """By each of the finest symbols, the symbol and its width where `kept` bits are kept."""
    return symbols_of(lowest_numbers(MOST_KEPT), kept)


def widths_of(symbols: np.ndarray, kept: int) -> np.ndarray:
    """Of the symbols' tails, uint8."""
    widths: np.ndarray = (np.maximum(symbols >> kept, 1) - 1).astype(np.uint8)
    return widths


@cache
def lowest_numbers(kept: int) -> np.ndarray:
    """The least number of each symbol, uint32."""
    symbols = np.arange((32 - kept) * (1 << kept) + (1 << kept), dtype=np.uint32)
    widths = widths_of(symbols, kept).astype(np.uint32)
    return (symbols - (widths << kept)) << widths


def bit_lengths(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of bits (0 for 0), and of those after the leading one; uint8."""
    symbols, widths = symbols_of(numbers, 0)
    return symbols.astype(np.uint8), widths


def dtype_of(kept: int, highest: int) -> type[np.unsignedinteger]:
    """What holds the numbers of all symbols up to the highest: uint16, or uint32."""
    least = lowest_numbers(kept)
    short = highest + 1 < len(least) and least[highest + 1] <= 2**16
    return np.uint16 if short else np.uint32


def take(fields: Fields, symbols: np.ndarray, kept: int, lowest: int) -> np.ndarray:
    """The numbers whose symbols, less the lowest, are these; their tails come next.

    They take the symbols' place, whose dtype has to hold them (`dtype_of`).
    """
    symbols += symbols.dtype.type(lowest)
    if int(symbols.max(initial=0)) >= 2 << kept:
        least = lowest_numbers(kept)
        widths = widths_of(np.arange(len(least), dtype=np.uint32), kept)
        tails.take(fields, symbols, least.astype(symbols.dtype), widths)
    return symbols
