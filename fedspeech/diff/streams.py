"""Which numbers of a diff share a code: those of one large segment, or those of all small ones."""

from collections.abc import Sequence

import numpy as np

from fedspeech.diff.contents import Segment

LARGE = 512
"""Codes of a segment that is worth a code of its own."""

Stream = list[tuple[int, str]]
"""Numbers that share a code: the segment's place, and whether its gaps or its codes are meant."""


def streams(segments: Sequence[Segment]) -> list[Stream]:
    """Of each large segment its gaps, if any, and its codes; then those of all small ones."""
    large: list[Stream] = []
    small: tuple[Stream, Stream] = [], []
    for place, segment in enumerate(segments):
        alone = len(segment.codes) >= LARGE
        for which, what in enumerate(("gaps", "codes")):
            if alone and len(getattr(segment, what)):
                large.append([(place, what)])
            else:
                small[which].append((place, what))
    return [*large, *small]


def numbers(segments: Sequence[Segment]) -> list[np.ndarray]:
    """What the streams hold, each in one array (uint32)."""
    return [
        np.concatenate([*(getattr(segments[i], what) for i, what in each), np.empty(0, np.uint32)])
        for each in streams(segments)
    ]
