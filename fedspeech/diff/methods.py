"""Ways to encode a comparison: the largest changes, arrays fitted to them, or arrays as learned."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from fedspeech.diff import hashed, sparse
from fedspeech.diff.compare import Comparison, Part
from fedspeech.diff.contents import MOST_HASHES, Form, Segment
from fedspeech.diff.values import Kind, codes, scale_of
from fedspeech.errors import DiffError

HASHES = 3


class Method(ABC):
    """How a comparison's parts become segments.

    `least` and `most` bound the amount that is sent: changed values, or cells of all arrays.
    """

    least: int
    most: int
    hashes = 0
    seed = 0

    @abstractmethod
    def segments(self, amount: int, kind: Kind, step: float) -> list[Segment]:
        """A segment for each part.

        int8 has steps of `step` times what is typical (the root mean square of all changes, or of
        all cells), or wider ones where the largest value needs them.
        """

    @abstractmethod
    def amount(self, share: float) -> int:
        """What a share of all values comes to."""


class Sparse(Method):
    """The largest changes, each in units of its tensor's root mean square; see `_rank`."""

    least = 0

    def __init__(self, comparison: Comparison) -> None:
        self._parts, self._values = comparison.parts, comparison.values
        magnitudes = [part.magnitudes() for part in self._parts]
        self._typical = _root_mean_square(magnitudes)
        self._ranks = list(map(_rank, self._parts, magnitudes))
        self._ranked = np.sort(np.concatenate([*self._ranks, np.empty(0, np.float32)]))
        self.most = int(np.count_nonzero(self._ranked))

    def segments(self, amount: int, kind: Kind, step: float) -> list[Segment]:
        """The first `amount` changes in rank; of some as large as the last, the first ones."""
        return [
            sparse.segment(part, places, kind, step * self._typical)
            for part, places in zip(self._parts, self._places(amount), strict=True)
        ]

    def _places(self, amount: int) -> list[np.ndarray]:
        """Of the first in rank, in each part, ascending."""
        least = self._ranked[-amount] if amount else np.inf
        found = [np.flatnonzero(ranks >= least) for ranks in self._ranks]
        more = sum(map(len, found)) - amount
        for number in reversed(range(len(found))):
            if more:  # in half precision changes are few steps, and many are as large
                (last,) = (self._ranks[number][found[number]] == least).nonzero()
                found[number] = np.delete(found[number], last[-more:])
                more -= len(last[-more:])
        return found

    def amount(self, share: float) -> int:
        """Of all values of the model that can change in part."""
        return min(round(share * self._values), self.most)


def _rank(part: Part, magnitudes: np.ndarray) -> np.ndarray:
    """Magnitudes, float32 (values,), by which changes are sent, the greatest first.

    Those of a vector that starts from zero count as infinite: a small variance of batch
    normalization is no small matter, since it is divided by.
    """
    if part.rows or part.base.any():
        return magnitudes
    return np.where(magnitudes > 0, np.float32(np.inf), np.float32(0))


class Fit(NamedTuple):
    """An array (float32) and the form in which it is meant."""

    array: np.ndarray
    form: Form


class Hashed(Method):
    """One array for each matrix, fitted to its change; what has fewer dimensions is sent sparse.

    All arrays are the same share of their matrices. The multiplicative form cannot move a value
    that is zero. So a matrix with a row that is zero falls back to the additive form; and where
    single values that are zero have to change, both forms are fitted, and the one that loses less
    is sent.
    """

    least = 1

    def __init__(
        self, comparison: Comparison, seed: int, hashes: int = HASHES, additive: bool = False
    ) -> None:
        if not 1 <= hashes <= MOST_HASHES:
            raise DiffError(f"hash functions: expected 1 to {MOST_HASHES}, found {hashes}")
        if not 0 <= seed < 2**64:
            raise DiffError(f"seed: expected at least 0 and below 2**64, found {seed}")
        self.seed, self.hashes = seed, hashes
        self._parts, self._additive = comparison.parts, additive
        self._hashed = {part: self._forms(part) for part in self._parts if self._has_array(part)}
        self._values = sum(len(part.base) for part in self._hashed)
        self.most = max(self._values, self.least)
        self._typical = _root_mean_square(part.magnitudes() for part in self._parts)
        self._fits: dict[tuple[Part, int], Fit] = {}

    def _has_array(self, part: Part) -> bool:
        return part.rows > 0

    def _forms(self, part: Part) -> tuple[Form, ...]:
        """Those that are fitted."""
        if self._additive or hashed.has_zero_row(part.base.reshape(max(part.rows, 1), -1)):
            return (Form.ADDITIVE,)
        if part.change[part.base == 0].any():
            return (Form.MULTIPLICATIVE, Form.ADDITIVE)
        return (Form.MULTIPLICATIVE,)

    def segments(self, amount: int, kind: Kind, step: float) -> list[Segment]:
        """Arrays of about `amount` cells together, at least one cell for each matrix."""
        fits = {part: self._fit(part, amount) for part in self._hashed}
        units = {
            part: 1.0 if fit.form == Form.MULTIPLICATIVE else part.unit
            for part, fit in fits.items()
        }
        typical = _root_mean_square(fit.array / units[part] for part, fit in fits.items())
        return [
            _segment(part, fits[part], kind, step * typical * units[part])
            if part in fits
            else sparse.segment(part, np.flatnonzero(part.change), kind, step * self._typical)
            for part in self._parts
        ]

    def _fit(self, part: Part, amount: int) -> Fit:
        size = min(max(round(amount * len(part.base) / self._values), 1), len(part.base))
        if (part, size) not in self._fits:
            self._fits[part, size] = self._best(part, size)
        return self._fits[part, size]

    def _best(self, part: Part, size: int) -> Fit:
        keys = hashed.keys(self.seed, part.name, part.number, self.hashes)

        def fitted(form: Form) -> Fit:
            additive = form == Form.ADDITIVE
            return Fit(hashed.fit(part.base, part.change, size, keys, additive), form)

        def lost(fit: Fit) -> float:
            additive = fit.form == Form.ADDITIVE
            return hashed.lost(part.base, part.change, fit.array, keys, additive)

        fits = list(map(fitted, self._hashed[part]))
        return fits[0] if len(fits) == 1 else min(fits, key=lost)

    def amount(self, share: float) -> int:
        """Of all values of the matrices that change."""
        return max(round(share * self._values), self.least)


def _segment(part: Part, fit: Fit, kind: Kind, step: float) -> Segment:
    scale = scale_of(fit.array, step)
    return Segment(len(part.base), fit.form, scale, codes(fit.array, kind, scale))


class Learned(Hashed):
    """The arrays that a training found (float32, by tensor); everything else is sent sparse.

    `additive` names the tensors whose arrays are meant additively. Raises DiffError for a tensor
    whose rows have grown: it has no array for the new ones.
    """

    def __init__(
        self,
        comparison: Comparison,
        arrays: Mapping[str, np.ndarray],
        seed: int,
        hashes: int = HASHES,
        additive: Collection[str] = (),
    ) -> None:
        self._arrays, self._names = arrays, additive
        super().__init__(comparison, seed, hashes)
        if grown := [part.name for part in self._hashed if part.number]:
            raise DiffError(f"tensor {grown[0]} has grown; it cannot be learned as an array")
        self.least = self.most = sum(len(arrays[part.name]) for part in self._hashed)

    def _has_array(self, part: Part) -> bool:
        return part.name in self._arrays

    def _forms(self, part: Part) -> tuple[Form, ...]:
        return (Form.ADDITIVE if part.name in self._names else Form.MULTIPLICATIVE,)

    def _fit(self, part: Part, amount: int) -> Fit:
        return Fit(self._arrays[part.name], *self._hashed[part])

    def amount(self, share: float) -> int:
        """Whatever was learned."""
        return self.most


def _root_mean_square(arrays: Iterable[np.ndarray]) -> float:
    """Of all values of all arrays together; 1 where there are none but zeros."""
    squares, count = 0.0, 0
    for array in arrays:
        squares += float(np.sum(np.square(array, dtype=np.float64)))
        count += len(array)
    return math.sqrt(squares / count) if squares else 1.0


METHODS: dict[str, Callable[[str], Callable[[Comparison], Method]]] = {
    "sparse": lambda base: Sparse,
    "hash": lambda base: partial(Hashed, seed=hashed.seed_of(base)),
}
"""Ways to encode what was not learned, by name, for a base of some hash: from it follow the hash
functions, so that they are other ones in every generation."""
