"""The diff that fits a budget and loses least.

What a diff loses is the squared distance between the model that it gives and the new one, each
tensor in units of its root mean square. There are two things to choose: how much is sent, and how
precisely. For each precision the search finds about the most that fits, by a size that is computed
and not encoded; of the precisions it takes the one that loses least. What is held against the
budget in the end is `len(encoded)`.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from fedspeech.diff import wire
from fedspeech.diff.apply import segment_values, update
from fedspeech.diff.compare import Comparison, compare, equal
from fedspeech.diff.contents import Diff, Segment
from fedspeech.diff.methods import Method, Sparse
from fedspeech.diff.values import Kind
from fedspeech.errors import DiffError
from fedspeech.tensors import Tensors, sha256

UNKNOWN = "0" * 64
"""Stands for a result that is not computed yet; its length is that of any other."""
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20}
COARSE, FINE = 1 / 32, 1 / 1024
"""How near the most that fits is found: to compare precisions, and in the end."""


class Precision(NamedTuple):
    """How values are stored; of int8 also its step, in what is typical (`Method.segments`)."""

    kind: Kind
    step: float = 0.0

    def __str__(self) -> str:
        step = f" in steps of {self.step:.3g}" if self.step else ""
        return f"{self.kind.name.lower()}{step}"


STEPS = tuple(Precision(Kind.INT8, 2 ** (eighth / 8)) for eighth in range(32, -41, -1))
"""From coarse to fine."""
OTHERS = (Precision(Kind.BF16), Precision(Kind.FP16), Precision(Kind.FP32))
STRIDES = (4, 1)
"""How many precisions the search goes at a time: first about, then exactly."""
FIRST = STEPS.index(Precision(Kind.INT8, 1.0))


@dataclass(frozen=True)
class Made:
    """A diff, the model that it gives, and the share of the change's square that it loses."""

    data: bytes
    result: Tensors
    lost: float


def parse(text: str, full: int) -> int:
    """A budget in bytes: `500kB`, `64KiB`, `1.5 MB`, `70000`, or `10x`: a tenth of `full` bytes.

    Raises DiffError for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?([a-zA-Z]*)", text.strip())
    number = float(found[1]) if found else 0.0
    if not found or found[2] not in {*UNITS, "x"} or number == 0:
        raise DiffError(f"budget: expected bytes (500kB, 64KiB) or a ratio (10x), found {text!r}")
    bytes = full / number if found[2] == "x" else number * UNITS[found[2]]
    if not math.isfinite(bytes):
        raise DiffError(f"budget: expected a number of bytes that a file can have, found {text!r}")
    return int(bytes)


def make(
    old: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
    budget: int | None = None,
    method: Callable[[Comparison], Method] = Sparse,
    kind: Kind | None = None,
    share: float | None = None,
    fresh: Collection[str] = (),
    tried: Callable[[str], object] = lambda _: None,
) -> Made:
    """The diff from old to new of at most `budget` bytes that loses least.

    `share` fixes the share of values that are sent (1 - sparsity), or of cells. `kind` fixes how
    values are stored; without a budget it is fp32, and without a share everything is sent. Tensors
    that `fresh` names start from zero. `tried` is told the best so far after each precision. Raises
    DiffError where the budget is too small, a value is NaN or infinite, or more values start from
    zero than devices take from so few bytes.
    """
    search = _Search(old, compare(old, new, fresh), method, share, tried)
    if budget is None:
        diff = search.diff(search.most, Precision(Kind.FP32 if kind is None else kind))
    else:
        diff = search.best(budget, [p for p in (*STEPS, *OTHERS) if kind in (None, p.kind)])
    result = dict(update(sorted(old.items()), diff))
    for name, tensor in result.items():
        if tensor.dtype == torch.float32 and not bool(torch.isfinite(tensor).all()):
            raise DiffError(f"tensor {name} would get values that a float32 does not hold")
    data = wire.encode(replace(diff, result=sha256(result)))
    wire.check_fresh(diff.entries, len(data), sum(tensor.numel() for tensor in old.values()))
    return Made(data, result, search.lost(diff))


def exact(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> bytes | None:
    """A diff that gives the new model to the bit, or None where there is none.

    w + (v - w) is not v for every pair of float32 values. Tensors in which it is not start from
    zero, and only a zero with a minus cannot be had from there.
    """
    fresh: list[str] = []
    for _ in range(2):
        made = make(old, new, fresh=fresh)
        fresh = [name for name, tensor in new.items() if not equal(made.result[name], tensor)]
        if not fresh:
            return made.data
    return None


class _Search:
    """Diffs of one comparison, by amount and precision."""

    def __init__(
        self,
        old: Mapping[str, torch.Tensor],
        comparison: Comparison,
        method: Callable[[Comparison], Method],
        share: float | None,
        tried: Callable[[str], object],
    ) -> None:
        self._base, self._comparison, self._method = sha256(old), comparison, method(comparison)
        self._tried = tried
        self.least, self.most = self._method.least, self._method.most
        if share is not None:
            self.least = self.most = self._method.amount(share)
        squares = [np.square(p.magnitudes(), dtype=np.float64).sum() for p in comparison.parts]
        self._square = float(sum(squares))

    def diff(self, amount: int, precision: Precision) -> Diff:
        """The diff, but for its result."""
        segments = self._method.segments(amount, *precision)
        entries = self._comparison.filled(segments)
        method = self._method
        return Diff(self._base, UNKNOWN, precision.kind, entries, method.hashes, method.seed)

    def lost(self, diff: Diff) -> float:
        """The share of the change's square that the diff does not bring."""
        segments = {
            (entry.name, number): segment
            for entry in diff.entries
            for number, segment in enumerate(entry.segments)
        }
        lost = 0.0
        for part in self._comparison.parts:
            segment = segments.get((part.name, part.number), Segment(len(part.base)))
            new = segment_values(diff, part.name, part.number, part.base, segment)
            left = (part.base.astype(float) + part.change - new) / part.unit
            lost += float(np.sum(left * left))
        return lost / self._square if self._square else 0.0

    def best(self, budget: int, precisions: Sequence[Precision]) -> Diff:
        """The diff of at most `budget` bytes that loses least."""
        steps = [precision for precision in precisions if precision in STEPS]
        found: dict[Precision, tuple[float, int]] = {}

        def cost(precision: Precision) -> float:
            if precision not in found:
                found[precision] = self._within(budget, precision)
                best = min(found, key=lambda one: found[one])
                self._tried(f"best so far {best}, {found[best][0]:.3g} lost")
            return found[precision][0]

        best = min([*precisions[len(steps) :], *_descend(cost, steps)], key=cost)
        if math.isinf(cost(best)):
            least = min(self._size(self.least, precision) for precision in precisions)
            raise DiffError(
                f"a budget of {budget} bytes is too small: the least is {least} bytes"
                f"{self._whole()}"
            )
        amount = self._most(budget, best, found[best][1], FINE, self._size)
        return self.diff(amount, best)

    def _whole(self) -> str:
        """What of the least cannot be made smaller."""
        whole = sum(len(entry.content) for entry in self._comparison.entries)
        return f", {whole} of them tensors that are not float32 and go as they are" if whole else ""

    def _within(self, budget: int, precision: Precision) -> tuple[float, int]:
        """What is lost at this precision, and the amount; infinite where nothing fits."""
        least = self._size(self.least, precision)
        if least > budget:
            return math.inf, 0
        # A byte for each: somewhere to begin.
        guess = self.least + budget - least
        amount = self._most(budget, precision, guess, COARSE, self._about)
        return self.lost(self.diff(amount, precision)), amount

    def _size(self, amount: int, precision: Precision) -> int:
        return len(wire.encode(self.diff(amount, precision)))

    def _about(self, amount: int, precision: Precision) -> int:
        return wire.about(self.diff(amount, precision))

    def _most(
        self,
        budget: int,
        precision: Precision,
        guess: int,
        tolerance: float,
        size_of: Callable[[int, Precision], int],
    ) -> int:
        """The largest amount that fits, found to within `tolerance` of itself; `least` fits."""
        low, high = self.least, self.most + 1
        small = first = size_of(low, precision)
        large = 0
        while high - low > max(1, tolerance * low):
            guess = _round(min(max(guess, low + 1), high - 1), tolerance, low, high)
            size = size_of(guess, precision)
            if size <= budget:
                low, small = guess, size
            else:
                high, large = guess, size
            if large:
                margin = (high - low) // 16
                ahead = (high - low) * (budget - small) // (large - small)
                guess = min(max(low + ahead, low + margin), high - margin)
            else:
                guess += (guess - self.least) * (budget - size) // max(size - first, 1)
                guess += int(tolerance * guess)
        return low


def _round(guess: int, tolerance: float, low: int, high: int) -> int:
    """A number near the guess, between the two, that other precisions ask for as well.

    Arrays that are fitted once are fitted for all precisions.
    """
    grid = 1 << max(int(tolerance * guess).bit_length() - 1, 0)
    rounded = max(guess // grid, low // grid + 1) * grid
    return rounded if rounded < high else guess


def _descend(cost: Callable[[Precision], float], steps: Sequence[Precision]) -> Sequence[Precision]:
    """The precision that costs no more than its neighbours, if there are any to choose from."""
    place = min(FIRST, len(steps) - 1)
    while place > 0 and math.isinf(cost(steps[place])):
        place -= 1
    for stride in STRIDES:
        for way in (stride, -stride):
            while 0 <= place + way < len(steps) and cost(steps[place + way]) < cost(steps[place]):
                place += way
    return steps[place : place + 1] if steps else []
