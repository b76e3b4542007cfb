"""What differs between two models, cut into the segments that a diff encodes."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from fedspeech.diff.contents import Change, Entry, Segment
from fedspeech.diff.floats import FLOATS, HALVES
from fedspeech.diff.wire import DTYPES, MOST_VALUES, extent
from fedspeech.errors import DiffError
from fedspeech.tensors import raw

NO_NUMBERS = "NaN or infinite"
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Part:
    """A run of a tensor's values that changes: what it was and what has to be added.

    `base` and `change` are float32 of shape (values,), whatever `dtype` the tensor has. `number` is
    1 for rows that the old model does not have, else 0. `unit` is the root mean square of the new
    values, or of the change where that is larger: errors are counted in it, so that a layer of
    large values weighs no more than one of small values.
    """

    name: str
    number: int
    base: np.ndarray
    change: np.ndarray
    unit: float
    dtype: str
    rows: int
    """Of a matrix, runs of equally many values; 0 where a tensor has fewer than two dimensions."""

    def magnitudes(self) -> np.ndarray:
        """|change| in units, float32."""
        magnitudes: np.ndarray = np.abs(self.change) / np.float32(self.unit)
        return magnitudes

    @cached_property
    def never_negative(self) -> bool:
        """Whether no value is below zero, neither before nor after."""
        if np.any(self.base < 0):
            return False
        # The change is rounded to float32: what leads to zero need not be all of the base.
        after = self.base.astype(float) + self.change
        return not np.any(after < -np.spacing(self.base))


@dataclass(frozen=True)
class Comparison:
    """What is to be encoded: entries whose segments are empty yet, and the parts to fill them."""

    entries: tuple[Entry, ...]
    parts: tuple[Part, ...]
    values: int
    """All values of the new model that can change in part, changed or not."""

    def filled(self, segments: Sequence[Segment]) -> tuple[Entry, ...]:
        """The entries with a segment for each part; those that change nothing are left out."""
        waiting = iter(segments)
        entries = [
            replace(e, segments=tuple(next(waiting) for _ in e.segments)) for e in self.entries
        ]
        return tuple(entry for entry in entries if not _idle(entry))


def _idle(entry: Entry) -> bool:
    return entry.change == Change.CHANGED and not any(len(s.codes) for s in entry.segments)


def compare(
    old: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
    whole: Collection[str] = (),
) -> Comparison:
    """Every tensor that differs.

    Raises DiffError where a value of the new model is NaN, whether it differs or not, or one that
    differs, or is to be added to, is infinite: what stays infinite may be a mask.

    A float32, float16 or bfloat16 tensor of the same shape has one part. One whose first dimension
    has grown has two: the old rows, and the new ones, whose base is zero. Any other of them that is
    new, or has another shape or dtype, starts from zero, and so does a float32 tensor that is named
    in `whole`. Other dtypes, and half precision that is named there, are sent verbatim.
    """
    entries: list[Entry] = []
    parts: list[Part] = []
    for name in sorted({*old, *new}):
        if name not in new:
            entries.append(Entry(name, Change.REMOVED))
        elif name in old and equal(old[name], new[name]):
            _refuse("new", name, new[name], torch.isnan, "NaN")
        else:
            entry, found = _compare(name, old.get(name), new[name], name in whole)
            entries.append(entry)
            parts += found
    values = sum(tensor.numel() for tensor in new.values() if _dtype(tensor) in FLOATS)
    return Comparison(tuple(entries), tuple(parts), values)


def mostly_changed(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> set[str]:
    """Tensors in half precision more than half of whose values change.

    To be given to the bit, a changed value takes about as many bytes as two that are sent as they
    are.
    """

    def changed(name: str, tensor: torch.Tensor) -> bool:
        before = old.get(name)
        if before is None or before.dtype != tensor.dtype or before.shape != tensor.shape:
            return True
        return 2 * int(torch.count_nonzero(before != tensor)) > tensor.numel()

    halves = [name for name, tensor in new.items() if _dtype(tensor) in HALVES]
    return {name for name in halves if changed(name, new[name])}


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether they are the same to the bit."""
    same = left.dtype == right.dtype and left.shape == right.shape
    return same and raw(left) == raw(right)


def _compare(
    name: str, old: torch.Tensor | None, new: torch.Tensor, whole: bool
) -> tuple[Entry, list[Part]]:
    shape = tuple(new.shape)
    if extent(shape) > MOST_VALUES:
        raise DiffError(f"tensor {name}: shape {shape}, expected at most {MOST_VALUES} values")
    dtype = _dtype(new)
    if dtype not in FLOATS:
        return _verbatim(name, new), []
    values = _finite("new", name, new)
    if whole and dtype in HALVES:
        return _verbatim(name, new), []
    if whole or old is None or old.dtype != new.dtype or not _has_rows_of(old, new):
        parts = [_part(name, 0, np.zeros_like(values), values, new)]
        return Entry(name, Change.FRESH, shape, (Segment(len(values)),), dtype=dtype), parts
    before = _finite("old", name, old)
    parts = [_part(name, 0, before, values[: len(before)], new)]
    if old.shape == new.shape:
        return Entry(name, Change.CHANGED, shape, (Segment(len(values)),), dtype=dtype), parts
    rows = values[len(before) :]
    parts.append(_part(name, 1, np.zeros_like(rows), rows, new))
    segments = tuple(Segment(len(part.base)) for part in parts)
    return Entry(name, Change.GROWN, shape, segments, old.shape[0], dtype), parts


def _has_rows_of(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether the new tensor is the old one with other values, and perhaps more rows."""
    grown = new.dim() == old.dim() > 0 and new.shape[0] > old.shape[0]
    return old.shape == new.shape or (grown and old.shape[1:] == new.shape[1:])


def _part(
    name: str, number: int, base: np.ndarray, values: np.ndarray, tensor: torch.Tensor
) -> Part:
    with np.errstate(over="ignore"):
        change = values - base
    if not np.isfinite(change).all():
        raise DiffError(f"tensor {name}: the change is larger than a float32 holds")
    # What is divided by a number that is far smaller may not be a float32 any more.
    unit = float(np.float32(max(_root_mean_square(values), _root_mean_square(change))))
    unit = max(unit, TINY) if unit else 1.0
    rows = len(base) // math.prod(tensor.shape[1:]) if tensor.dim() > 1 and len(base) else 0
    return Part(name, number, base, change, unit, _dtype(tensor), rows)


def _root_mean_square(values: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(values, dtype=np.float64))) if len(values) else 0.0


def _finite(which: str, name: str, tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values in float32, flat. Raises DiffError where one is NaN or infinite."""
    _refuse(which, name, tensor, _not_finite, NO_NUMBERS)
    values: np.ndarray = tensor.detach().cpu().contiguous().reshape(-1).float().numpy()
    return values


def _refuse(
    which: str,
    name: str,
    tensor: torch.Tensor,
    is_wrong: Callable[[torch.Tensor], torch.Tensor],
    told: str,
) -> None:
    """Raise DiffError where a value, of whatever dtype, is what no model should have."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    numbers = tensor.float() if tensor.itemsize == 1 else tensor  # torch asks no float8
    if wrong := int(torch.count_nonzero(is_wrong(numbers.detach()))):
        raise DiffError(
            f"the {which} model: {wrong} of {tensor.numel()} values of tensor {name} are {told}"
        )


def _not_finite(numbers: torch.Tensor) -> torch.Tensor:
    return ~torch.isfinite(numbers)


def _verbatim(name: str, tensor: torch.Tensor) -> Entry:
    dtype = _dtype(tensor)
    if dtype not in DTYPES:
        raise DiffError(f"tensor {name} is {dtype}; expected float32 or one of {', '.join(DTYPES)}")
    _refuse("new", name, tensor, _not_finite, NO_NUMBERS)
    content = raw(tensor).tobytes()
    return Entry(name, Change.VERBATIM, tuple(tensor.shape), dtype=dtype, content=content)


def _dtype(tensor: torch.Tensor) -> str:
    """Its name, as the container has it."""
    return str(tensor.dtype).removeprefix("torch.")
