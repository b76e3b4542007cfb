"""Interleaved rANS in integer NumPy: static codes of order 0, many symbols at a time.

Duda, "Asymmetric numeral systems", 2013 (arXiv 1311.2540); Giesen, "Interleaved entropy coders",
2014 (arXiv 1402.3392). Symbol number i of a stream goes to lane i modulo the number of lanes; all
streams share the lanes, one stream after another. FORMAT.md says it to the bit.
"""

from collections.abc import Sequence

import numpy as np

from fedspeech.diff.fields import damaged

STATE_BITS, WORD_BITS = 32, 16
LEAST_STATE = 1 << (STATE_BITS - WORD_BITS)
SYMBOLS_PER_LANE, MOST_LANES = 1024, 2048
LANE_BYTES = 3
"""What a lane costs: of the 32 bits of its state, 8 on average say something."""

Stream = tuple[np.ndarray, np.ndarray]
"""Symbols, and the frequency of each possible symbol; frequencies sum to a power of two."""


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
    scale, width = _scale(frequencies), len(states)
    frequency = frequencies.astype(np.uint32)
    start = _starts(frequency)
    for first in reversed(range(0, len(symbols), width)):
        # Places for NumPy; it would convert anything else each time.
        block = symbols[first : first + width].astype(np.intp)
        state, divisor = states[: len(block)], frequency[block]
        (over,) = (state >= divisor << np.uint32(STATE_BITS - scale)).nonzero()
        pushed = state[over]
        words.append(pushed.astype(np.uint16))
        state[over] = pushed >> WORD_BITS
        # (x // f << scale) + x % f + start, with x % f = x - x // f * f
        state += state // divisor * (np.uint32(1 << scale) - divisor)
        state += start[block]


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

    def read(self, count: int, frequencies: np.ndarray) -> np.ndarray:
        """The next stream's symbols, uint16. Raises DiffError where words are missing."""
        scale = np.uint32(_scale(frequencies))
        symbol_of = np.repeat(np.arange(len(frequencies), dtype=np.uint16), frequencies)
        frequency_of = frequencies.astype(np.uint32)[symbol_of]
        slots = np.arange(1 << int(scale), dtype=np.uint32)
        place_of = slots - _starts(frequencies.astype(np.uint32))[symbol_of]
        last = slots[-1]
        symbols = np.empty(count, np.uint16)
        for first in range(0, count, len(self._states)):
            block = symbols[first : first + len(self._states)]
            state = self._states[: len(block)]
            slot = (state & last).astype(np.intp)
            block[:] = symbol_of[slot]
            state >>= scale
            state *= frequency_of[slot]
            state += place_of[slot]
            self._refill(state)
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


def _scale(frequencies: np.ndarray) -> int:
    return int(frequencies.sum()).bit_length() - 1


def _starts(frequencies: np.ndarray) -> np.ndarray:
    starts: np.ndarray = np.cumsum(frequencies, dtype=np.uint32) - frequencies
    return starts
