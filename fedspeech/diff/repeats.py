"""Segments that change nearly as one before them does, as what they differ by.

PyTorch's LSTMs have two bias vectors for each layer, which enter as a sum: whatever learns one of
them learns the other alike. Only the container has this form; in memory every segment has its own
codes.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedspeech.diff.contents import Diff, Form, Segment
from fedspeech.diff.fields import damaged
from fedspeech.diff.values import BITS, Kind

MOST = 2**16
"""Values of such a segment: what learns alike is small, and a reader has it in memory twice."""
SAVED = 1 / 2
"""Of the bits that the numbers have, for the form to be worth it."""


def folded(diff: Diff) -> Diff:
    """With what repeats another segment as differences from it (uint32); its form says so."""
    return _each(diff, _fold)


def unfolded(diff: Diff) -> Diff:
    """With every segment's own codes (uint32).

    Raises DiffError where one repeats what is not there.
    """
    return _each(diff, _unfold)


def _each(diff: Diff, change: Callable[[Segment, Segment | None, Kind], Segment]) -> Diff:
    """The diff with its segments changed, beside the last one that each of them may repeat."""
    before: dict[int, Segment] = {}

    def changed(segment: Segment) -> Segment:
        if not _may_repeat(segment):
            return segment
        made = change(segment, before.get(segment.values), diff.kind)
        # What is repeated is itself: its own codes, whichever of the two is made of the other.
        before[segment.values] = segment if segment.form == Form.SPARSE else made
        return made

    entries = (
        replace(entry, segments=tuple(map(changed, entry.segments))) for entry in diff.entries
    )
    return replace(diff, entries=tuple(entries))


def _may_repeat(segment: Segment) -> bool:
    """Whether it has a code for every value, and is small enough."""
    everywhere = 0 < len(segment.codes) == segment.values <= MOST
    return everywhere and segment.form in (Form.SPARSE, Form.REPEATED)


def _fold(segment: Segment, before: Segment | None, kind: Kind) -> Segment:
    if before is None:
        return segment
    apart = _wrapped(segment.codes.astype(np.int64) - before.codes.astype(np.int64), kind)
    numbers = np.where(apart < 0, -2 * apart - 1, 2 * apart).astype(np.uint32)
    if _bits(numbers) >= SAVED * _bits(segment.codes):
        return segment
    return replace(segment, form=Form.REPEATED, codes=numbers)


def _unfold(segment: Segment, before: Segment | None, kind: Kind) -> Segment:
    if segment.form == Form.SPARSE:
        return segment
    if before is None:
        raise damaged(f"{segment.values} values that repeat none before them")
    numbers = segment.codes.astype(np.int64)
    apart = np.where(numbers & 1, -(numbers + 1 >> 1), numbers >> 1)
    codes = before.codes.astype(np.int64) + apart & (1 << BITS[kind]) - 1
    return replace(segment, form=Form.SPARSE, codes=codes.astype(np.uint32))


def _wrapped(apart: np.ndarray, kind: Kind) -> np.ndarray:
    """The same differences (int64) modulo two to the power of a code's bits, nearest to zero."""
    half = 1 << BITS[kind] - 1
    return (apart + half & 2 * half - 1) - half


def _bits(numbers: np.ndarray) -> float:
    """About as many as it takes to write each number by itself."""
    return float(np.log2(numbers.astype(np.float64) + 1).sum())
