"""The hashed diff, learned: W = base + |base| * sum_k A[h_k(i)], with a small trained array A.

Macoskey, Strimel, Rastrow, "Learning a Neural Diff for Speech Models", 2021 (arXiv 2108.01561).
Cells are recomputed from the seed, block by block, in each forward and each backward pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fedspeech.diff import hashed
from fedspeech.diff.compare import Comparison
from fedspeech.diff.hashed import Key
from fedspeech.diff.learned import LearnedDiff, check_learnable
from fedspeech.diff.methods import HASHES, Learned
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256, state

DEVICE_BLOCK = 2**22
"""Values whose cells are in a GPU's memory at a time."""
WORD = 2**32 - 1


def cells(key: Key, first: int, last: int, size: int, device: torch.device) -> torch.Tensor:
    """`hashed.cells` as an int64 tensor on a device, which computes them itself."""
    if device.type == "cpu":
        return torch.from_numpy(hashed.cells(key, first, last, size))
    mixed = torch.arange(first, last, dtype=torch.int64, device=device)
    # Products wrap at 2**64, which leaves their low 32 bits as they are.
    mixed = mixed * key.factor + key.offset & WORD
    mixed = (mixed ^ mixed >> 16) * 0x7FEB352D & WORD
    mixed = (mixed ^ mixed >> 15) * 0x846CA68B & WORD
    return (mixed ^ mixed >> 16) * size >> 32


class _Sums(torch.autograd.Function):
    """sum_k A[h_k(i)] for all values of a tensor, differentiable with respect to A."""

    @staticmethod
    def forward(ctx: Any, array: torch.Tensor, keys: Sequence[Key], count: int) -> torch.Tensor:
        ctx.keys, ctx.size = keys, len(array)
        found = array.new_empty(count)
        for first, last in _blocks(count, array.device):
            places = cells(keys[0], first, last, len(array), array.device)
            total = array.index_select(0, places)
            for key in keys[1:]:
                places = cells(key, first, last, len(array), array.device)
                total += array.index_select(0, places)
            found[first:last] = total
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        found = gradient.new_zeros(ctx.size)
        for first, last in _blocks(len(gradient), gradient.device):
            for key in ctx.keys:
                places = cells(key, first, last, ctx.size, gradient.device)
                found.scatter_add_(0, places, gradient[first:last])
        return found, None, None


def _sums(array: torch.Tensor, keys: Sequence[Key], count: int) -> torch.Tensor:
    found: torch.Tensor = _Sums.apply(array, keys, count)  # type: ignore[no-untyped-call]
    return found


class _Dense(torch.autograd.Function):
    """The weight itself. Embeddings may give a sparse gradient, which no cells can gather."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(weight)  # a view could not be changed in place, as a greatest norm does
        return weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gradient,) = gradients
        return gradient.to_dense() if gradient.is_sparse else gradient


def _dense(weight: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Dense.apply(weight)  # type: ignore[no-untyped-call]
    return found


def _blocks(count: int, device: torch.device) -> Iterator[tuple[int, int]]:
    block = hashed.BLOCK if device.type == "cpu" else DEVICE_BLOCK
    return hashed.blocks(count, block)


class HashedWeight(torch.nn.Module):
    """W = base + |base| * s, or base + s where additive; s(i) = sum_k A[h_k(i)], and A is trained.

    A has `size` cells and starts at zero. Without an anchor the base is zero, as in HashedNets
    (Chen et al. 2015), and A starts with the weight's first values over sqrt(K), which keeps its
    variance.
    """

    base: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, size: int, keys: Sequence[Key], additive: bool, anchored: bool
    ) -> None:
        super().__init__()
        self.size, self.keys, self.anchored = size, tuple(keys), anchored
        self.shape = weight.shape
        self.additive = additive or not anchored or _is_mostly_still(weight)
        self.register_buffer("base", weight.clone() if anchored else weight.new_zeros(()))

    def forward(self, array: torch.Tensor) -> torch.Tensor:
        """The weight, in its own shape."""
        change = _sums(array, self.keys, self.shape.numel()).view(self.shape)
        weight = self.base + (change if self.additive else change * self.base.abs())
        return _dense(weight)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What A starts with."""
        if self.anchored:
            return weight.new_zeros(self.size)
        return weight.flatten()[: self.size] / math.sqrt(len(self.keys))


def _is_mostly_still(weight: torch.Tensor) -> bool:
    matrix = weight.detach().flatten(1) if weight.dim() > 1 else weight.detach()[None]
    return hashed.is_mostly_still(matrix.cpu().numpy())


class HashDiff(LearnedDiff):
    """Learn a hashed diff on top of the module as it is now, or hash the module itself.

    The multiplicative form cannot move a value that is zero: a matrix in which more than half of
    the values are, or a whole row, falls back to the additive one.

    Arrays have `share` times as many cells as their matrices have values, at least one. The seed
    follows from the module as it is now, unless it is given. Raises DiffError for what cannot be.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        share: float,
        hashes: int = HASHES,
        seed: int | None = None,
        additive: bool = False,
        names: Sequence[str] | None = None,
        anchored: bool = True,
    ) -> None:
        if not 0 < share <= 1:
            raise DiffError(f"share of cells: expected above 0 and at most 1, found {share}")
        check_learnable(module)
        self._hashes, self._is_additive = hashes, additive or not anchored
        self.seed = hashed.seed_of(sha256(state(module))) if seed is None else seed

        def make(name: str, weight: torch.Tensor) -> HashedWeight:
            size = max(round(share * weight.numel()), 1)
            keys = hashed.keys(self.seed, name, 0, hashes)
            return HashedWeight(weight, size, keys, additive, anchored)

        super().__init__(module, make, names)

    @property
    def fallen_back(self) -> tuple[str, ...]:
        """Matrices that are learned additively because the multiplicative form hardly moves them.

        None where all are additive anyway.
        """
        additive = [name for name, part in self.parts.items() if part.additive]
        return () if self._is_additive else tuple(additive)

    def arrays(self) -> dict[str, np.ndarray]:
        """A (float32) by the name of its matrix."""
        return {name: self.trained(name).detach().cpu().numpy().copy() for name in self.parts}

    def method(self) -> Callable[[Comparison], Learned]:
        """How `budget.make` encodes what was learned."""
        return partial(
            Learned,
            arrays=self.arrays(),
            seed=self.seed,
            hashes=self._hashes,
            additive=frozenset(name for name, part in self.parts.items() if part.additive),
        )
