"""Interleaved rANS in integer NumPy: static codes of order 0 or 1, many symbols at a time.

Duda, "Asymmetric numeral systems", 2013 (arXiv 1311.2540); Giesen, "Interleaved entropy coders",
2014 (arXiv 1402.3392). Symbol number i of a stream goes to lane i modulo the number of lanes; all
streams share the lanes, one stream after another. Of order 1, where a symbol's frequencies follow
from the symbol before, each lane has a run of the stream instead, so that it knows that symbol.
FORMAT.md says it to the bit.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fedspeech.diff.fields import damaged

STATE_BITS, WORD_BITS = 32, 16
LEAST_STATE = 1 << (STATE_BITS - WORD_BITS)
SYMBOLS_PER_LANE, MOST_LANES = 1024, 2048
LANE_BYTES = 3
"""What a lane costs: of the 32 bits of its state, 8 on average say something."""

Stream = tuple[np.ndarray, np.ndarray]
"""Symbols, and the frequency of each possible symbol; frequencies sum to a power of two. Of order
1: a row of frequencies for each context, which is the symbol before, or the last row's number where
that is less; the first of a lane has context 0."""


def lanes(symbols: int) -> int:
    """How many lanes that many symbols of all streams together have."""
    return min(max(symbols // SYMBOLS_PER_LANE, 1), MOST_LANES)


def encode(streams: Sequence[Stream]) -> tuple[np.ndarray, np.ndarray]:
    """States (uint32, one a lane) and words (uint16), in the order in which they are decoded.

    Symbols have frequencies of at least 1, and nowhere the whole sum.
    """
    states = np.full(lanes(sum(len(symbols) for symbols, _ in streams)), LEAST_STATE, np.uint32)
    words: list[np.ndarray] = []
    for symbols, frequencies in reversed(streams):
        _push(states, symbols, frequencies, words)
    return states, np.concatenate([*words[::-1], np.empty(0, np.uint16)])


def _push(
    states: np.ndarray, symbols: np.ndarray, frequencies: np.ndarray, words: list[np.ndarray]
) -> None:
    """Put a stream on top of the states, its last symbols first."""
    scale = _scale(frequencies)
    frequency = frequencies.astype(np.uint32)
    start = _starts(frequency).reshape(-1)
    frequency = frequency.reshape(-1)
    for block in _rounds_backwards(symbols, frequencies, len(states)):
        state, divisor = states[: len(block)], frequency[block]
        (over,) = (state >= divisor << np.uint32(STATE_BITS - scale)).nonzero()
        pushed = state[over]
        words.append(pushed.astype(np.uint16))
        state[over] = pushed >> WORD_BITS
        # (x // f << scale) + x % f + start, with x % f = x - x // f * f
        state += state // divisor * (np.uint32(1 << scale) - divisor)
        state += start[block]


def _rounds_backwards(
    symbols: np.ndarray, frequencies: np.ndarray, width: int
) -> Iterator[np.ndarray]:
    """The last symbols of all lanes, those before, ...: as places in the flat frequencies."""
    # Places for NumPy (intp); it would convert anything else each time.
    if frequencies.ndim == 1:
        for first in reversed(range(0, len(symbols), width)):
            yield symbols[first : first + width].astype(np.intp)
        return
    count, (contexts, size) = len(symbols), frequencies.shape
    rounds, used = _runs(count, width)
    padded = np.zeros(rounds * used, symbols.dtype)
    padded[:count] = symbols
    in_rounds = np.ascontiguousarray(padded.reshape(used, rounds).T)
    for place in reversed(range(rounds)):
        block = in_rounds[place, : _still(count, place, rounds)].astype(np.intp)
        if place:
            block += np.minimum(in_rounds[place - 1, : len(block)], contexts - 1) * np.intp(size)
        yield block


def _runs(count: int, width: int) -> tuple[int, int]:
    """Rounds of a stream of order 1, which are the symbols of a lane, and lanes that have any."""
    rounds = -(-count // width)
    return rounds, -(-count // rounds)


def _still(count: int, place: int, rounds: int) -> int:
    """Lanes that have a symbol in this round: the first ones."""
    return -(-(count - place) // rounds)


class Decoder:
    """Takes streams off the states again, in the order in which `encode` was given them."""

    def __init__(self, states: np.ndarray, words: np.ndarray) -> None:
        self._states, self._words, self._at = states.copy(), words, 0

    @property
    def left(self) -> int:
        """Bytes of what was not taken yet, of the words and in the states."""
        # A damaged state may be smaller.
        states = np.maximum(self._states, LEAST_STATE)
        held = float(np.sum(np.log2(states / LEAST_STATE)))
        return (WORD_BITS * (len(self._words) - self._at) + int(held)) // 8

    def read(
        self, count: int, frequencies: np.ndarray, dtype: type[np.unsignedinteger] = np.uint16
    ) -> np.ndarray:
        """The next stream's symbols. Raises DiffError where words are missing."""
        tables, width = _Tables(frequencies), len(self._states)
        if frequencies.ndim == 1:
            symbols = np.empty(count, dtype)
            for first in range(0, count, width):
                block = symbols[first : first + width]
                block[:] = self._round(tables, len(block), None)
            return symbols
        rounds, used = _runs(count, width)
        in_rounds = np.zeros((rounds, used), dtype)
        context = None
        for place, row in enumerate(in_rounds):
            still = _still(count, place, rounds)
            row[:still] = self._round(tables, still, context)
            context = np.minimum(row, len(frequencies) - 1).astype(np.intp) << tables.scale
        return in_rounds.T.reshape(-1)[:count]

    def _round(self, tables: "_Tables", width: int, context: np.ndarray | None) -> np.ndarray:
        """A symbol from each of the first lanes; a context is where its table begins."""
        state = self._states[:width]
        slot = (state & tables.last).astype(np.intp)
        if context is not None:
            slot += context[:width]
        state >>= np.uint32(tables.scale)
        state *= tables.frequency_of[slot]
        state += tables.place_of[slot]
        self._refill(state)
        symbols: np.ndarray = tables.symbol_of[slot]
        return symbols

    def _refill(self, state: np.ndarray) -> None:
        (low,) = (state < LEAST_STATE).nonzero()
        words = self._words[self._at : self._at + len(low)]
        if len(words) < len(low):
            raise damaged("the coded words end too soon")
        self._at += len(low)
        state[low] = (state[low] << WORD_BITS) | words

    def end(self) -> None:
        """Raise DiffError unless the words are used up and the states are as they began."""
        if self._at < len(self._words) or bool((self._states != LEAST_STATE).any()):
            raise damaged("the coded words do not come out even")


class _Tables:
    """What each slot stands for; one context's slots after those of another."""

    def __init__(self, frequencies: np.ndarray) -> None:
        self.scale = _scale(frequencies)
        self.last = np.uint32((1 << self.scale) - 1)
        flat = frequencies.reshape(-1).astype(np.uint32)
        places = np.repeat(np.arange(len(flat)), flat)
        self.symbol_of = (places % frequencies.shape[-1]).astype(np.uint16)
        self.frequency_of = flat[places]
        slots = np.arange(len(places), dtype=np.uint32) & self.last
        self.place_of = slots - _starts(frequencies.astype(np.uint32)).reshape(-1)[places]


def _scale(frequencies: np.ndarray) -> int:
    """Of the sum of the frequencies; all contexts have the same."""
    return int(frequencies.sum(-1).flat[0]).bit_length() - 1


def _starts(frequencies: np.ndarray) -> np.ndarray:
    starts: np.ndarray = np.cumsum(frequencies, -1, dtype=np.uint32) - frequencies
    return starts
