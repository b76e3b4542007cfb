"""What a diff says: which tensors change, and how. `wire` makes bytes of it."""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from fedspeech.diff.values import Kind

MOST_HASHES = 16
"""Hash functions of a diff."""


class Change(IntEnum):
    """What becomes of a tensor."""

    CHANGED = 0
    GROWN = 1
    FRESH = 2
    VERBATIM = 3
    REMOVED = 4


class Form(IntEnum):
    """How a segment's values change."""

    SPARSE = 0
    MULTIPLICATIVE = 1
    ADDITIVE = 2
    REPEATED = 3
    """Sparse, by what its codes differ from another segment's; in the container only."""


@dataclass(frozen=True)
class Segment:
    """A run of a tensor's values: the whole tensor, its old rows, or its new rows.

    Sparse: `gaps` (uint32) are the numbers of unchanged values before each changed one, `codes`
    (uint32) what is added there; with a code for every value there are no gaps. Hashed: `codes` are
    the array A. Without codes nothing changes. The scale is a float32.
    """

    values: int
    form: Form = Form.SPARSE
    scale: float = 1.0
    codes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    gaps: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))


@dataclass(frozen=True)
class Entry:
    """One tensor: its shape and dtype in the new model and what becomes of it."""

    name: str
    change: Change
    shape: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    rows: int = 0
    """Of the old model, where the tensor has grown."""
    dtype: str = "float32"
    content: bytes = b""
    """Of a tensor that is sent verbatim: little-endian, row by row."""


@dataclass(frozen=True)
class Diff:
    """Everything that a container holds. Entries are in the order of their names."""

    base: str
    result: str
    kind: Kind
    entries: tuple[Entry, ...]
    hashes: int = 0
    seed: int = 0

    @property
    def additive(self) -> tuple[str, ...]:
        """What is hashed additively: tensors, or their new rows."""
        return tuple(
            part_name(entry.name, number)
            for entry in self.entries
            for number, segment in enumerate(entry.segments)
            if segment.form == Form.ADDITIVE
        )


def part_name(name: str, number: int) -> str:
    """What a tensor's segment is called: its first one has the tensor's name."""
    return f"{name} (new rows)" if number else name
