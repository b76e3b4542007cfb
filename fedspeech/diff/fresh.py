"""Values that start from zero, and the bytes that a diff must have for them.

What comes from zero may be coded in nothing, and would fill any memory: devices take as many such
values as the base has, and some more for each byte. It is a rule for whoever writes a diff, too.
"""

from collections.abc import Iterable

from fedspeech.diff.contents import Change, Entry
from fedspeech.errors import DiffError

FROM_ZERO = Change.FRESH, Change.GROWN
"""Whose last segment starts from zero."""
PER_BYTE = 256
"""Values from zero beyond those of the base, for each byte."""


def check_fresh(entries: Iterable[Entry], size: int, base: int) -> None:
    """Raise DiffError where a diff of `size` bytes starts more values from zero than it may.

    `base` is the number of values of its base: what the base does not vouch for is bounded by the
    bytes that there are.
    """
    if (fresh := _values(entries)) > base + PER_BYTE * size:
        raise DiffError(
            f"{fresh} values start from zero; a diff of {size} bytes for a model of {base} values "
            f"brings at most {base + PER_BYTE * size}"
        )


def least_size(entries: Iterable[Entry], base: int) -> int:
    """The fewest bytes of a diff with which `check_fresh` lets these entries pass."""
    return max(-(-(_values(entries) - base) // PER_BYTE), 0)


def _values(entries: Iterable[Entry]) -> int:
    return sum(entry.segments[-1].values for entry in entries if entry.change in FROM_ZERO)
