"""The hash against plain integers, and the fit against numpy.linalg.lstsq."""

import hashlib
import struct

import numpy as np
import pytest
import reference_diff
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fedspeech.diff import hashed

KEYS = hashed.keys(7, "tdnn.0.weight", 0, 3)


def incidence(keys, values: int, size: int) -> np.ndarray:
    """(values, size): how often each value falls into each cell, by plain integers."""
    found = np.zeros((values, size))
    for key in keys:
        for i in range(values):
            x = (key.factor * i + key.offset) % 2**32
            x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
            x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
            found[i, (x ^ (x >> 16)) * size >> 32] += 1
    return found


@pytest.mark.parametrize("size", [1, 7, 1000, 2**32 - 1])
def test_cells_are_those_of_plain_integers(size):
    for k, key in enumerate(KEYS):
        wanted = [reference_diff.cell(7, "tdnn.0.weight", 0, k, i, size) for i in range(100, 300)]
        assert hashed.cells(key, 100, 300, size).tolist() == wanted


def test_the_last_index_of_all():
    wanted = reference_diff.cell(7, "tdnn.0.weight", 0, 0, 2**32 - 2, 99)
    assert hashed.cells(KEYS[0], 2**32 - 2, 2**32 - 1, 99).tolist() == [wanted]


@given(st.integers(0, 2**64 - 1), st.text(max_size=9), st.integers(0, 1))
def test_keys_follow_from_seed_name_part_and_number(seed, name, part):
    for number, key in enumerate(hashed.keys(seed, name, part, 4)):
        text = struct.pack("<QII", seed, part, number) + name.encode()
        words = struct.unpack("<8I", hashlib.sha256(text).digest())
        assert key == (words[0] | 1, words[1])


def test_cells_are_used_evenly_and_functions_are_independent():
    """Chi-squared over cells, and over pairs of cells of two functions."""
    values, size = 200_000, 100
    first, second = (hashed.cells(key, 0, values, size) for key in KEYS[:2])
    for counts in (np.bincount(first, minlength=size), np.bincount(first * size + second)):
        expected = values / len(counts)
        chi = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi - len(counts)) < 5 * np.sqrt(2 * len(counts))


def test_the_seed_follows_from_the_base():
    assert hashed.seed_of("0123456789abcdef" + 48 * "f") == 0x0123456789ABCDEF


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("hashes", [1, 3])
def test_applying_is_the_formula_in_float32(additive, hashes):
    draw = np.random.default_rng(hashes)
    values = hashed.BLOCK + 77
    base = draw.normal(size=values).astype(np.float32)
    array = draw.normal(size=50).astype(np.float32)
    keys = KEYS[:hashes]
    total = array[hashed.cells(keys[0], 0, values, 50)]
    for key in keys[1:]:
        total = total + array[hashed.cells(key, 0, values, 50)]
    wanted = base + (total if additive else total * np.abs(base))
    assert wanted.dtype == np.float32
    runs = list(hashed.apply([base[:70], base[70:71], base[71:]], array, keys, additive))
    assert list(map(len, runs)) == [70, 1, values - 71]
    found = np.concatenate(runs)
    assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    # And the sum itself is that of the incidence matrix.
    few = incidence(keys, 40, 50) @ array.astype(float)
    assert_allclose(hashed.sums(array, keys, 0, 40), few, atol=1e-6)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(("values", "size"), [(300, 20), (300, 150), (40, 40), (5, 1)])
def test_the_fit_is_the_damped_least_squares_solution(additive, values, size):
    draw = np.random.default_rng(size)
    base = draw.normal(size=values).astype(np.float32)
    change = (0.1 * draw.normal(size=values)).astype(np.float32)
    system = incidence(KEYS, values, size)
    if not additive:
        system *= np.abs(base)[:, None]
    # The damping is a thousandth of the squares of an average cell; once for each of its values.
    squares = np.ones(values) if additive else base.astype(float) ** 2
    damping = 1e-3 * 3 * squares.sum() / size
    rows = np.vstack([system, np.sqrt(damping) * np.eye(size)])
    wanted = np.linalg.lstsq(rows, np.concatenate([change, np.zeros(size)]), rcond=None)[0]
    found = hashed.fit(base, change, size, KEYS, additive)
    assert found.dtype == np.float32
    assert_allclose(found, wanted, atol=(0.1 if values == size else 2e-3) * np.abs(wanted).max())

    def left(array: np.ndarray, damping: float) -> float:
        return np.sum((system @ array - change) ** 2) + damping * np.sum(array**2)

    assert left(found.astype(float), damping) < left(wanted, damping) * (1 + 1e-4) + 1e-9
    # And what is left is hardly more than the undamped optimum leaves.
    best = np.linalg.lstsq(system, change, rcond=None)[0]
    assert left(found.astype(float), 0) < 1.05 * left(best, 0) + 0.02 * np.sum(change**2)


def test_a_change_that_the_array_can_express_is_found_again():
    draw = np.random.default_rng(0)
    base, array = draw.normal(size=5000).astype(np.float32), draw.normal(size=100)
    change = (incidence(KEYS, 5000, 100) @ array * np.abs(base)).astype(np.float32)
    assert_allclose(hashed.fit(base, change, 100, KEYS, False), array, atol=0.01)


def test_the_fit_does_not_depend_on_blocks(monkeypatch):
    draw = np.random.default_rng(1)
    base, change = (draw.normal(size=3000).astype(np.float32) for _ in range(2))
    whole = hashed.fit(base, change, 60, KEYS, False)
    monkeypatch.setattr(hashed, "FIT_BLOCK", 700)
    assert_allclose(hashed.fit(base, change, 60, KEYS, False), whole, rtol=1e-4, atol=1e-6)


def test_cells_that_no_value_falls_into_stay_zero():
    base = np.ones(2, np.float32)
    array = hashed.fit(base, base, 1000, KEYS, True)
    used = np.unique([hashed.cells(key, 0, 2, 1000) for key in KEYS])
    assert np.flatnonzero(array).tolist() == used.tolist()


def test_a_base_of_zeros_cannot_be_moved_by_the_multiplicative_form():
    zeros, change = np.zeros(50, np.float32), np.ones(50, np.float32)
    assert not hashed.fit(zeros, change, 5, KEYS, False).any()
