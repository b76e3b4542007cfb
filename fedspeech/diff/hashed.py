"""The hashed form: every value changes by a sum of K cells of a small array A.

Macoskey, Strimel, Rastrow, "Learning a Neural Diff for Speech Models", 2021 (arXiv 2108.01561):
W_new(i) = W(i) + |W(i)| * sum_k A[h_k(i)]; the additive form is W(i) + sum_k A[h_k(i)], as in
HashedNets (Chen et al. 2015). Cells are recomputed from the seed block by block and kept nowhere.
FORMAT.md specifies the hash and the order of the float32 operations to the bit.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

BLOCK, FIT_BLOCK = 2**15, 2**19
"""Values whose cells are in memory at a time: so few that they stay in the cache, and so many that
a sum over all cells costs nothing beside them."""
STEPS, TOLERANCE = 60, 1e-4
"""Of the conjugate gradients: how many at most, and the relative residual that is enough."""
DAMPING = 1e-3
"""Of the squares that fall into an average cell."""
LARGEST = 2.0**100
"""Of a fitted cell: a few of them add up to a float32, whatever tiny values they are fitted to."""


class Key(NamedTuple):
    """One hash function of one segment: an odd factor and an offset, both of 32 bits."""

    factor: int
    offset: int


def keys(seed: int, name: str, part: int, hashes: int) -> tuple[Key, ...]:
    """The hash functions of a tensor's segment (0: the first, 1: the new rows)."""
    found = []
    for number in range(hashes):
        text = struct.pack("<QII", seed, part, number) + name.encode()
        factor, offset = struct.unpack_from("<II", hashlib.sha256(text).digest())
        found.append(Key(factor | 1, offset))
    return tuple(found)


def seed_of(base: str) -> int:
    """The seed by default: it follows from the base's hash, so that each generation has its own."""
    return int(base[:16], 16)


def cells(key: Key, first: int, last: int, size: int) -> np.ndarray:
    """h(i) for first <= i < last: places in an array of `size` cells, int64."""
    mixed = np.arange(first, last, dtype=np.uint32)
    mixed *= np.uint32(key.factor)
    mixed += np.uint32(key.offset)
    mixed ^= mixed >> 16
    mixed *= np.uint32(0x7FEB352D)
    mixed ^= mixed >> 15
    mixed *= np.uint32(0x846CA68B)
    mixed ^= mixed >> 16
    wide = mixed.astype(np.uint64)
    wide *= np.uint64(size)
    wide >>= np.uint64(32)
    return wide.view(np.int64)


def sums(array: np.ndarray, keys: Sequence[Key], first: int, last: int) -> np.ndarray:
    """sum_k A[h_k(i)] for first <= i < last in the dtype of A, added in the order of k."""
    total: np.ndarray = array[cells(keys[0], first, last, len(array))]
    for key in keys[1:]:
        total += array[cells(key, first, last, len(array))]
    return total


def has_zero_row(matrix: np.ndarray) -> bool:
    """Whether a row of shape (rows, values) is wholly zero: what is new, and was never trained.

    The multiplicative form cannot move it.
    """
    return not matrix.any(axis=1).all()


def is_mostly_still(matrix: np.ndarray) -> bool:
    """Whether more than half of the values are zero, or a whole row is."""
    return has_zero_row(matrix) or 2 * int(np.count_nonzero(matrix)) < matrix.size


def apply(
    base: Iterable[np.ndarray], array: np.ndarray, keys: Sequence[Key], additive: bool
) -> Iterator[np.ndarray]:
    """W_new of a segment, run by run as the base comes: all float32, A of shape (cells,)."""
    first = 0
    for run in base:
        last = first + len(run)
        # A diff that goes beyond float32 is found by the hash of its result.
        with np.errstate(over="ignore", invalid="ignore"):
            change = sums(array, keys, first, last)
            if not additive:
                change *= np.abs(run)
            change += run
        yield change
        first = last


def fit(
    base: np.ndarray, change: np.ndarray, size: int, keys: Sequence[Key], additive: bool
) -> np.ndarray:
    """The array A (float32, `size` cells) that comes nearest to adding `change` (float32).

    Least squares by conjugate gradients on the normal equations, in float64; deterministic. They
    are damped a little: cells that hardly move anything would become huge, and nothing that huge
    can be sent beside the others. Cells that no value falls into stay zero.
    """
    factors = np.ones_like(base) if additive else np.abs(base)
    squares = np.square(factors, dtype=np.float64)

    target = _scattered(lambda i, j: factors[i:j] * change[i:j].astype(float), base, size, keys)
    diagonal = _scattered(lambda i, j: squares[i:j], base, size, keys)
    damping = DAMPING * float(diagonal.mean()) or 1.0

    def product(array: np.ndarray) -> np.ndarray:
        moved = _scattered(lambda i, j: squares[i:j] * sums(array, keys, i, j), base, size, keys)
        return moved + damping * array

    solved: np.ndarray = np.clip(_solved(product, target, diagonal + damping), -LARGEST, LARGEST)
    return solved.astype(np.float32)


def lost(
    base: np.ndarray, change: np.ndarray, array: np.ndarray, keys: Sequence[Key], additive: bool
) -> float:
    """The squared distance of what the array adds to `change`; in float64."""
    total, wide = 0.0, array.astype(float)
    for first, last in blocks(len(base), FIT_BLOCK):
        moved = sums(wide, keys, first, last)
        if not additive:
            moved *= np.abs(base[first:last])
        total += float(np.sum(np.square(change[first:last] - moved)))
    return total


def _scattered(
    weights: Callable[[int, int], np.ndarray], base: np.ndarray, size: int, keys: Sequence[Key]
) -> np.ndarray:
    """For each cell the sum of the weights of the values that fall into it; float64."""
    total = np.zeros(size)
    for first, last in blocks(len(base), FIT_BLOCK):
        weight = weights(first, last)
        for key in keys:
            total += np.bincount(cells(key, first, last, size), weight, size)
    return total


def _solved(
    product: Callable[[np.ndarray], np.ndarray], target: np.ndarray, diagonal: np.ndarray
) -> np.ndarray:
    """x with product(x) = target, by conjugate gradients preconditioned with the diagonal."""
    found, rest = np.zeros_like(target), target.copy()
    direction = rest / diagonal
    size = first = float(np.sum(rest * direction))
    for _ in range(STEPS):
        if size <= TOLERANCE**2 * first:
            break
        image = product(direction)
        step = size / float(np.sum(direction * image))
        found += step * direction
        rest -= step * image
        before, size = size, float(np.sum(rest * rest / diagonal))
        direction = rest / diagonal + size / before * direction
    return found


def blocks(count: int, block: int = BLOCK) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) of runs of at most `block` values."""
    for first in range(0, count, block):
        yield first, min(first + block, count)
