"""The code of gaps and codes, against a decoder that goes symbol by symbol."""

import math
from contextlib import suppress

import numpy as np
import pytest
import reference_diff
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal

from fedspeech.diff import entropy, order_1, rans, symbols, tails
from fedspeech.diff.fields import Fields, varint
from fedspeech.errors import DiffError

NUMBERS = st.one_of(
    st.integers(0, 3), st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from([7, 2**31])
)
STREAMS = st.lists(
    arrays.arrays(np.uint32, st.integers(0, 60), elements=NUMBERS), min_size=0, max_size=4
)


def check(streams) -> bytes:
    """What is encoded comes back by our decoder and by the plain one."""
    streams = [np.asarray(stream, np.uint32) for stream in streams]
    counts = [len(stream) for stream in streams]
    data = entropy.encode(streams)
    for stream, ours in zip(streams, entropy.decode(data, counts), strict=True):
        assert_array_equal(ours, stream)
    plain = reference_diff.Bytes(data)
    assert reference_diff.streams(plain, counts) == [stream.tolist() for stream in streams]
    assert plain.at == len(data)
    return data


@settings(max_examples=150)
@given(STREAMS)
def test_what_is_encoded_comes_back(streams):
    check(streams)


@pytest.mark.parametrize("count", [1, 255, 256, 1023, 1024, 5000, 9000])
def test_streams_of_many_lanes_come_back(count):
    """Lanes are not a divisor of the counts; the second stream begins with the first lane again."""
    draw = np.random.default_rng(count)
    gaps = draw.geometric(0.1, count) - 1
    patterns = draw.normal(size=2 * count + 1).astype(np.float32).view(np.uint32)
    check([gaps, patterns, np.full(3, 2**32 - 1), np.zeros(count)])


@pytest.mark.parametrize(
    ("symbols", "lanes"),
    [(0, 1), (2047, 1), (2048, 2), (3072, 3), (10**6, 976), (2 * 10**6, 1953), (10**8, 2048)],
)
def test_the_number_of_lanes(symbols, lanes):
    assert rans.lanes(symbols) == lanes


@pytest.mark.parametrize(
    ("kept", "number", "symbol", "width"),
    # 0b1101: with one bit kept after the leading one, two bits remain; 2 << 1 | 0b11.
    [
        (1, 0b1101, 0b111, 2),
        (0, 1, 1, 0),
        (0, 2, 2, 1),
        (0, 7, 3, 2),
        (3, 15, 15, 0),
        (3, 16, 16, 1),
    ],
)
def test_symbols_and_tails(kept, number, symbol, width):
    found = symbols.symbols_of(np.array([number, 2**32 - 1], np.uint32), kept)
    assert (found[0][0], found[1][0]) == (symbol, width)
    assert reference_diff.number_of(symbol, kept, number % (1 << width)) == number


@pytest.mark.parametrize("kept", range(symbols.MOST_KEPT + 1))
def test_every_symbol_has_its_least_number(kept):
    lowest = symbols.lowest_numbers(kept)
    found, widths = symbols.symbols_of(lowest, kept)
    assert_array_equal(found, np.arange(len(lowest)))
    assert_array_equal(widths, symbols.widths_of(found, kept))
    assert (np.diff(lowest.astype(np.int64)) == 1 << widths[:-1].astype(np.int64)).all()
    assert int(lowest[-1]) + (1 << int(widths[-1])) == 2**32


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 31)), max_size=80),
    st.integers(1, 80),
)
def test_tails_come_back(pairs, block):
    numbers = np.array([n % (1 << w) for n, w in pairs], np.uint32)
    widths = np.array([w for _, w in pairs], np.uint8)
    data = tails.pack(numbers, widths)
    # Each number is its own symbol, whose least number is 0.
    found, least = np.arange(len(numbers), dtype=np.uint32), np.zeros_like(numbers)
    fields = Fields(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tails, "BLOCK", block)  # the bits of a tail begin anywhere in a byte
        tails.take(fields, found, least, widths)
    fields.end()
    assert_array_equal(found, numbers)
    assert reference_diff.tails(reference_diff.Bytes(data), widths.tolist()) == numbers.tolist()
    # No more than the bits need, but for what fills up the last byte of each width.
    assert len(data) <= sum(widths.tolist()) / 8 + len(set(widths.tolist()))


def order_0(numbers: np.ndarray) -> float:
    """Bits of a stream by its empirical entropy."""
    shares = np.unique(numbers, return_counts=True)[1] / len(numbers)
    return -float((shares * np.log2(shares)).sum()) * len(numbers)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_gaps_cost_what_choosing_their_places_costs(density):
    draw, places = np.random.default_rng(0), 400_000
    chosen = np.flatnonzero(draw.random(places) < density)
    gaps = (np.diff(chosen, prepend=-1) - 1).astype(np.uint32)
    n = len(chosen)
    nats = math.lgamma(places + 1) - math.lgamma(n + 1) - math.lgamma(places - n + 1)
    assert len(entropy.encode([gaps])) * 8 < 1.015 * nats / math.log(2)


def test_uneven_values_cost_their_entropy():
    draw = np.random.default_rng(1)
    codes = np.minimum(np.abs(draw.laplace(size=200_000) * 20), 254).astype(np.uint32)
    assert len(entropy.encode([codes])) * 8 < 1.01 * order_0(codes)


def test_one_number_a_thousand_times_costs_next_to_nothing():
    assert len(entropy.encode([np.full(1000, 77, np.uint32)])) < 20


@pytest.mark.parametrize("value", [0, 1, 300, 2**32 - 1])
def test_no_more_numbers_come_out_of_a_byte_than_the_format_says(value):
    """The cheapest stream that there is: one number again and again."""
    for count in (3000, 100_000, 5_000_000):
        data = entropy.encode([np.full(count, value, np.uint32)])
        assert count <= entropy.SYMBOLS_PER_BYTE * len(data)


def test_the_streams_sizes_add_up_but_for_lanes():
    draw = np.random.default_rng(2)
    streams = [
        (draw.geometric(p, n) - 1).astype(np.uint32) for p, n in [(0.01, 50_000), (0.2, 9000)]
    ]
    alone = [len(entropy.encode([stream])) for stream in streams]
    data = entropy.encode(streams)
    sizes = entropy.sizes(data, [len(stream) for stream in streams])
    lanes = sum(map(len, streams)) // 1024
    assert len(data) - sum(sizes) == pytest.approx(3 * lanes, rel=0.1)
    for size, whole, stream in zip(sizes, alone, streams, strict=True):
        assert size == pytest.approx(whole - 3 * len(stream) / 1024, rel=0.005)


# Damage.


@pytest.mark.parametrize(
    ("data", "counts", "told"),
    [
        (bytes(4), [8193], "8193 numbers in 4 bytes"),
        (bytes([10, 0, 2, 0]), [1], "symbols that there are not"),
        (bytes([0, 30, 9]), [1], "symbols that there are not"),
        (bytes([0, 0, 0]), [1], "do not sum up"),
        (bytes([0, 0, 2, 0x22, 0]), [1], "do not sum up"),
        # 256 of 256 for one symbol: it would cost nothing.
        (bytes([0, 0, 1, 9, 0]), [1], "do not sum up"),
        (bytes([0, 0, 2]), [1], "1 bytes expected, 0 left"),
        (varint(3) + bytes(4), [], "6 bytes expected, 0 left"),
        (varint(0) + (2**16 + 1).to_bytes(4, "little"), [], "do not come out even"),
        (varint(1) + (2**16).to_bytes(4, "little") + bytes(2), [], "do not come out even"),
        (varint(0) + (2**16).to_bytes(4, "little") + bytes(1), [], "1 bytes more than expected"),
        (bytes([0x80] * 5), [], "a number of more than 5 bytes"),
    ],
)
def test_damage_is_told(data, counts, told):
    with pytest.raises(DiffError, match=told):
        entropy.decode(data, counts)


@pytest.mark.parametrize("count", [2**15, 40_000, 150_001])
def test_numbers_that_follow_from_each_other_take_what_order_1_says(count):
    """By the entropy of each number given the one before, counted plainly."""
    steps = np.random.default_rng(7).integers(-1, 2, count)
    walk = (np.abs(np.cumsum(steps)) % 23).astype(np.uint32)
    others = [np.arange(900, dtype=np.uint32) * 80, walk[:5]]
    data = entropy.encode([walk, *others])
    assert data[0] == order_1.MARK
    decoded = entropy.decode(data, [count, 900, 5])
    assert all(np.array_equal(a, b) for a, b in zip(decoded, [walk, *others], strict=True))
    plain = reference_diff.streams(reference_diff.Bytes(data), [count, 900, 5])
    assert plain == [walk.tolist(), *(other.tolist() for other in others)]
    pairs = np.bincount(np.minimum(walk[:-1], 15) * 23 + walk[1:], minlength=16 * 23)
    pairs = pairs.reshape(16, 23)
    given = np.broadcast_to(pairs.sum(1, keepdims=True), pairs.shape)[pairs > 0]
    wanted = np.sum(pairs[pairs > 0] * np.log2(given / pairs[pairs > 0])) / 8
    alone = len(entropy.encode([walk]))
    assert wanted < alone < 1.01 * wanted + 600 + 4 * count / 1024
    assert entropy.about([walk]) == pytest.approx(alone, rel=0.01)


def test_order_1_is_for_numbers_that_need_it():
    draw = np.random.default_rng(8)
    assert entropy.encode([draw.integers(0, 20, 2**16).astype(np.uint32)])[0] <= symbols.MOST_KEPT
    walk = (np.abs(np.cumsum(draw.integers(-1, 2, 2**16))) % 23).astype(np.uint32)
    walk[-1] = 512
    assert entropy.encode([walk])[0] <= symbols.MOST_KEPT


def test_no_mutation_of_order_1_does_more_than_tell():
    draw = np.random.default_rng(9)
    walk = (np.abs(np.cumsum(draw.integers(-1, 2, 2**15))) % 23).astype(np.uint32)
    data = entropy.encode([walk])
    for place in draw.integers(0, [300, len(data)], (100, 2)).flat:
        other = bytearray(data)
        other[place] ^= 1 << int(draw.integers(8))
        # A wrong number may come out, which the hash of the result tells.
        with suppress(DiffError):
            (found,) = entropy.decode(bytes(other), [len(walk)])
            assert len(found) == len(walk)
