"""The diff that fits a budget and loses least.

There are two things to choose: how much is sent, and how precisely. For each precision the search
finds about the most that fits, by a size that is computed and not encoded; of the precisions it
takes the one that loses least. What is held against the budget in the end is `len(encoded)`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fedspeech.diff import wire
from fedspeech.diff.apply import segment_values
from fedspeech.diff.compare import Comparison
from fedspeech.diff.contents import Diff, Segment
from fedspeech.diff.fresh import check_fresh, least_size
from fedspeech.diff.methods import Method
from fedspeech.diff.values import Kind
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256

UNKNOWN = "0" * 64
"""Stands for a result that is not computed yet; its length is that of any other."""
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
OTHERS = (*map(Precision, (Kind.INT8, Kind.BF16, Kind.FP16, Kind.FP32)),)
"""Of them, int8 has in each segment the finest steps that hold its largest value."""
STRIDES = (8, 4, 1)
"""How many precisions the search goes at a time: first about, then exactly."""
FEWER = 0.75
"""A share of all that can be sent, which is tried where there is room for all. An array of as many
cells as there are values fits them so closely that its own values are huge, and badly stored."""


class Search:
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
        self._values = sum(tensor.numel() for tensor in old.values())
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
            new = segment_values(diff, part, segment)
            left = (part.base.astype(float) + part.change - new) / part.unit
            lost += float(np.sum(left * left))
        return lost / self._square if self._square else 0.0

    def best(self, budget: int, precisions: Sequence[Precision]) -> Diff:
        """The diff of at most `budget` bytes that loses least.

        Raises DiffError where the budget is too small.
        """
        smallest = self._smallest_taken(precisions)
        if smallest is not None and (size := len(wire.encode(smallest))) > budget:
            raise self._too_small(budget, size)
        steps = [precision for precision in precisions if precision in STEPS]
        found: dict[Precision, tuple[float, int]] = {}
        # A byte for each: somewhere to begin. Later it is what fits at a precision near by.
        guess = self.least + budget

        def cost(precision: Precision) -> float:
            nonlocal guess
            if precision not in found:
                found[precision] = self._within(budget, precision, guess)
                guess = found[precision][1] or guess
                best = min(found, key=lambda one: found[one])
                lost = found[best][0]
                told = f"best so far {best}, {lost:.3g} lost"
                self._tried("none that fits yet" if math.isinf(lost) else told)
            return found[precision][0]

        best = min([*precisions[len(steps) :], *_descend(cost, steps)], key=cost)
        if math.isinf(cost(best)):
            least = min(self._size(self.least, precision) for precision in precisions)
            raise self._too_small(budget, least)
        diff = self._finest(budget, best, found[best][1])
        too_few = smallest is not None and len(wire.encode(diff)) < self._least_taken()
        return smallest if smallest is not None and too_few else diff

    def _too_small(self, budget: int, least: int) -> DiffError:
        whole = sum(len(entry.content) for entry in self._comparison.entries)
        told = f", {whole} of them tensors that go as they are" if whole else ""
        return DiffError(
            f"a budget of {budget} bytes is too small: the least is {least} bytes{told}"
        )

    def _least_taken(self) -> int:
        """Bytes that a diff must have for a device to start so many values from zero."""
        return least_size(self._comparison.entries, self._values)

    def _smallest_taken(self, precisions: Sequence[Precision]) -> Diff | None:
        """The smallest diff that a device takes, where the one that sends least is too small.

        It is that of the coarsest precision, or of the finest where the coarsest has too few bytes
        for it. Raises DiffError where all that there is to send has.
        """
        least = self._least_taken()
        if not least or self._size(self.least, precisions[0]) >= least:
            return None
        for precision in (precisions[0], precisions[-1]):
            if self._size(self.most, precision) >= least:
                amount = self._most(least - 1, precision, self.least + 1, 0.0, self._size) + 1
                return self.diff(amount, precision)
        diff = self.diff(self.most, precisions[-1])
        check_fresh(diff.entries, len(wire.encode(diff)), self._values)
        return None

    def _within(self, budget: int, precision: Precision, guess: int) -> tuple[float, int]:
        """What is lost at this precision, and the amount; infinite where nothing fits."""
        if self._size(self.least, precision) > budget:
            return math.inf, 0
        amount = self._most(budget, precision, guess, COARSE, self._about)
        amounts = [amount]
        if amount == self.most > self.least:
            amounts.append(max(int(FEWER * amount), self.least))
        return min((self.lost(self.diff(each, precision)), each) for each in amounts)

    def _finest(self, budget: int, precision: Precision, about: int) -> Diff:
        """The largest diff that fits, or that of about the amount, where it loses less."""
        amount = self._most(budget, precision, about, FINE, self._size)
        found = self.diff(amount, precision)
        if amount == about or self._size(about, precision) > budget:
            return found
        return min(found, self.diff(about, precision), key=self.lost)

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
        """The largest amount that fits, found to within `tolerance` of itself; `least` fits.

        Where all fits it is all: what is left out of a small tensor can matter, as a variance does.
        """
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
        untried = low < self.most and not large
        return self.most if untried and size_of(self.most, precision) <= budget else low


def _round(guess: int, tolerance: float, low: int, high: int) -> int:
    """A number near the guess, between the two, that other precisions ask for as well.

    Arrays that are fitted once are fitted for all precisions.
    """
    grid = 1 << max(int(tolerance * guess).bit_length() - 1, 0)
    rounded = max(guess // grid, low // grid + 1) * grid
    return rounded if rounded < high else guess


def _descend(cost: Callable[[Precision], float], steps: Sequence[Precision]) -> Sequence[Precision]:
    """The precision that costs no more than its neighbours, if there are any to choose from.

    There are several such where the changes have few sizes, as those that were quantized before
    have, and with arrays, of which coarse steps leave nothing but noise. So the search goes down
    from the best of some that are far apart, and both ways are looked at before one is taken.
    """
    first, *strides = STRIDES
    places = range(len(steps))
    place = min(places[::first], key=lambda i: cost(steps[i]), default=0)
    for stride in strides:
        before = -1
        while place != before:
            before = place
            near = [i for i in (place, place + stride, place - stride) if i in places]
            place = min(near, key=lambda i: cost(steps[i]), default=0)
    return steps[place : place + 1]
