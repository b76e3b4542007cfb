"""The sparse form: what is added to the values that change most, and where they are."""

import numpy as np

from fedspeech.diff.compare import Part
from fedspeech.diff.contents import Form, Segment
from fedspeech.diff.fields import damaged
from fedspeech.diff.hashed import blocks
from fedspeech.diff.values import Kind, codes, scale_of, values


def segment(part: Part, places: np.ndarray, kind: Kind, step: float) -> Segment:
    """The segment that adds the part's change at the places (int64, ascending), as near as it can.

    int8 has steps of `step` units, or wider ones where the largest value needs them. Places where
    nothing is left of the change are left out, unless most of the values change: then all have a
    code, and there are no gaps.
    """
    wanted = part.change[places]
    scale = scale_of(wanted, step * part.unit)
    stored = codes(wanted, kind, scale)
    something = values(stored, kind, scale) != 0
    places, stored = places[something], stored[something]
    count = len(part.base)
    if 2 * len(places) > count:
        everywhere = np.zeros(count, np.uint32)
        everywhere[places] = stored
        return Segment(count, Form.SPARSE, scale, everywhere)
    gaps = np.diff(places, prepend=-1) - 1
    return Segment(count, Form.SPARSE, scale, stored, gaps.astype(np.uint32))


def apply(base: np.ndarray, segment: Segment, kind: Kind) -> np.ndarray:
    """The segment's new values (float32). Raises DiffError for a place beyond the last value."""
    new = base.copy()
    place = 0
    for first, last in blocks(len(segment.codes)):
        added = values(segment.codes[first:last], kind, segment.scale)
        if len(segment.codes) == len(base):
            new[first:last] += added
            continue
        places = np.cumsum(segment.gaps[first:last].astype(np.int64) + 1) + place - 1
        place = int(places[-1]) + 1
        if place > len(base):
            raise damaged(f"a change of value {place - 1} of {len(base)}")
        new[places] += added
    return new
