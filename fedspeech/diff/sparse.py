"""The sparse form: what is added to the values that change most, and where they are."""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from fedspeech.diff import entropy
from fedspeech.diff.compare import Part
from fedspeech.diff.contents import Form, Segment
from fedspeech.diff.fields import damaged
from fedspeech.diff.hashed import blocks
from fedspeech.diff.values import Kind, codes, scale_of, values

DENSE = 16
"""One of so many values has to change before a code for every value is tried."""
BEYOND = partial(np.errstate, over="ignore", invalid="ignore")
"""A diff that goes beyond float32 is found by the hash of its result."""


def segment(part: Part, places: np.ndarray, kind: Kind, step: float) -> Segment:
    """The segment that adds the part's change at the places (int64, ascending), as near as it can.

    int8 has steps of `step` units, or wider ones where the largest value needs them. Places where
    nothing is left of the change are left out, unless most of the values change, or neighbours
    change alike and it takes less: then all have a code, and there are no gaps. What is never
    negative, as a variance, is not made so by rounding.
    """
    wanted = part.change[places]
    scale = scale_of(wanted, step * part.unit)
    stored = codes(wanted, kind, scale)
    if part.never_negative:
        below = part.base[places] + values(stored, kind, scale) < 0
        # A negative value has an odd code; two less is the next one towards zero.
        stored[below] = np.where(stored[below] > 2, stored[below] - 2, 0)
    something = values(stored, kind, scale) != 0
    places, stored = places[something], stored[something]
    count = len(part.base)
    gaps = (np.diff(places, prepend=-1) - 1).astype(np.uint32)
    if DENSE * len(places) > count:
        everywhere = np.zeros(count, np.uint32)
        everywhere[places] = stored
        if 2 * len(places) > count or _smaller(everywhere, gaps, stored, kind):
            return Segment(count, Form.SPARSE, scale, everywhere)
    return Segment(count, Form.SPARSE, scale, stored, gaps)


def _smaller(everywhere: np.ndarray, gaps: np.ndarray, stored: np.ndarray, kind: Kind) -> bool:
    """Whether a code for every value takes less: where neighbours change alike, in int8."""
    if kind != Kind.INT8 or not entropy.is_order_1(everywhere):
        return False
    return entropy.about([everywhere]) < entropy.about([gaps, stored])


def apply(base: Iterable[np.ndarray], segment: Segment, kind: Kind) -> Iterator[np.ndarray]:
    """The segment's new values (float32), run by run as the base comes.

    Raises DiffError for a place beyond the last value.
    """
    if len(segment.codes) == segment.values:
        return _everywhere(base, segment, kind)
    return _at_places(base, segment, kind)


def _everywhere(base: Iterable[np.ndarray], segment: Segment, kind: Kind) -> Iterator[np.ndarray]:
    first = 0
    for run in base:
        last = first + len(run)
        with BEYOND():
            new = run + values(segment.codes[first:last], kind, segment.scale)
        yield new
        first = last


def _at_places(base: Iterable[np.ndarray], segment: Segment, kind: Kind) -> Iterator[np.ndarray]:
    first, changes = 0, _changes(segment, kind)
    places, added = next(changes)
    for run in base:
        new, last = run.copy(), first + len(run)
        while len(places):
            here = int(np.searchsorted(places, last))
            with BEYOND():
                new[places[:here] - first] += added[:here]
            places, added = places[here:], added[here:]
            if len(places):
                break
            places, added = next(changes, (places, added))
        yield new
        first = last


def _changes(segment: Segment, kind: Kind) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (int64, ascending) and what is added there, some at a time."""
    place = 0
    for first, last in blocks(len(segment.codes)):
        places = np.cumsum(segment.gaps[first:last].astype(np.int64) + 1) + place - 1
        place = int(places[-1]) + 1
        if place > segment.values:
            raise damaged(f"a change of value {place - 1} of {segment.values}")
        yield places, values(segment.codes[first:last], kind, segment.scale)
