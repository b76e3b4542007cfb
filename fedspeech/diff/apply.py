"""A diff applied to the model that it was made for: its base's hash before, its result's after."""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from fedspeech import layout
from fedspeech.diff import hashed, sparse, wire
from fedspeech.diff.compare import Part
from fedspeech.diff.contents import Change, Diff, Entry, Form, Segment
from fedspeech.diff.floats import narrowed, rounded, widened
from fedspeech.diff.fresh import check_fresh
from fedspeech.diff.values import values
from fedspeech.errors import DiffError
from fedspeech.layout import Layout, Stored
from fedspeech.tensors import Tensors, TensorStream, hash_values, raw, sha256, write_whole


def apply(old: Mapping[str, torch.Tensor], data: bytes, alike: bool = False) -> Tensors:
    """The new model; tensors that stay as they are, are those of `old`.

    Raises DiffError where the diff is damaged or newer than this program, is for another model, or
    does not give the model that it names; where they have to be `alike`, also where the new model
    would have other tensors than the old one, before it takes memory for them.
    """
    check_base(wire.base_of(data), sha256(old))
    outline, coded = wire.outline(data)
    held = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in old.items()}
    _check_fits(outline, len(data), held)
    if alike:
        _check_alike(outline, held)
    diff = wire.filled(outline, coded)
    new = dict(update(sorted(old.items()), diff))
    check_result(diff, sha256(new))
    return new


def apply_all(
    models: Callable[[str], Mapping[str, torch.Tensor]], diffs: Sequence[bytes]
) -> Tensors:
    """The model that some diffs lead to, one after another, from the one that the first is for.

    `models` gives that one by its hash. Raises as `apply` does.
    """
    model = dict(models(wire.base_of(diffs[0])))
    for data in diffs:
        model = apply(model, data)
    return model


def apply_file(old: Path, data: bytes, new: Path) -> str:
    """`apply` from file to file, in memory for little more than the diff; the new model's hash.

    The new file is there whole and checked, or not at all; it may be the old one. Raises as `apply`
    does, ModelError where the old file cannot be read and DiskError where the new one cannot be
    written.
    """
    base, before = wire.base_of(data), layout.read(old)
    digest = hashlib.sha256()
    for name, held in layout.stream(old, before):
        hash_values(digest, name, held.dtype, held.shape, (run.data for run in held.runs))
    check_base(base, digest.hexdigest())
    outline, coded = wire.outline(data)
    _check_fits(outline, len(data), before.tensors)
    diff = wire.filled(outline, coded)

    def save(part: Path) -> None:
        digest = hashlib.sha256()
        merged = _merged(layout.stream(old, before), diff, partial(_stored, diff))
        layout.write(part, _layout(before, diff), _hashed(merged, digest))
        check_result(diff, digest.hexdigest())

    write_whole(new, save)
    return diff.result


def apply_files(old: Path, diffs: Sequence[bytes], new: Path) -> str:
    """`apply_file` for a chain of diffs, in memory for one of them; the new model's hash.

    The models in between take the place of one more on the disk, and are gone in the end. Raises as
    `apply_file` does.
    """
    between = new.with_name(f".{new.name}.{os.getpid()}.between.part")
    try:
        for data in diffs[:-1]:
            apply_file(old, data, between)
            old = between
        return apply_file(old, diffs[-1], new)
    finally:
        between.unlink(missing_ok=True)


def _layout(old: Layout, diff: Diff) -> Layout:
    """Of the new model's file; what else the old one says of itself stays."""
    found = dict(old.tensors)
    for entry in diff.entries:
        found[entry.name] = getattr(torch, entry.dtype), entry.shape
        if entry.change == Change.REMOVED:
            del found[entry.name]
    return Layout(found, old.notes)


def _hashed(
    stream: Iterable[tuple[str, Stored]], digest: "hashlib._Hash"
) -> Iterator[tuple[str, Iterable[memoryview]]]:
    """The runs of each tensor, which are hashed as they pass."""
    for name, (dtype, shape, runs) in stream:
        hash_values(digest, name, dtype, shape, ())
        yield name, _hashed_runs(runs, digest)


def _hashed_runs(runs: Iterable[np.ndarray], digest: "hashlib._Hash") -> Iterator[memoryview]:
    for run in runs:
        digest.update(run.data)
        yield run.data


def check_base(base: str, found: str) -> None:
    """Raise DiffError unless the model that was found is the base of the diff; both are hashes."""
    if found != base:
        raise DiffError(f"the diff is for the model {base}, and this one is {found}")


def _check_fits(
    diff: Diff, size: int, base: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    """Raise DiffError where a diff of `size` bytes is for other tensors than the base's.

    To be asked of an outline, so that codes take memory only where the model has values for them,
    or the diff has bytes.
    """
    for entry in diff.entries:
        _check_tensor(entry, base.get(entry.name))
    check_fresh(diff.entries, size, sum(math.prod(shape) for _, shape in base.values()))


def _check_tensor(entry: Entry, held: tuple[torch.dtype, tuple[int, ...]] | None) -> None:
    if entry.change in (Change.FRESH, Change.VERBATIM):
        return
    if held is None:
        raise DiffError(f"the diff changes tensor {entry.name!r}, which the model lacks")
    dtype, shape = str(held[0]).removeprefix("torch."), held[1]
    before = (entry.rows, *entry.shape[1:]) if entry.change == Change.GROWN else entry.shape
    if entry.change != Change.REMOVED and (dtype, shape) != (entry.dtype, before):
        raise DiffError(
            f"the diff changes tensor {entry.name!r} of {entry.dtype} {before}; the model has "
            f"{dtype} {shape}"
        )


def _check_alike(diff: Diff, base: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    for entry in diff.entries:
        if entry.change == Change.REMOVED:
            raise DiffError(f"the diff takes tensor {entry.name!r} from the model")
        if entry.name not in base:
            raise DiffError(f"the diff brings tensor {entry.name!r}, which the model lacks")
        dtype, shape = base[entry.name]
        if (found := (entry.dtype, entry.shape)) != (str(dtype).removeprefix("torch."), shape):
            raise DiffError(
                f"the diff makes tensor {entry.name!r} one of {found[0]} {found[1]}; the model has "
                f"{dtype} {shape}"
            )


def check_result(diff: Diff, found: str) -> None:
    """Raise DiffError unless the diff gave the model that it names."""
    if found != diff.result:
        raise DiffError(f"the diff should have given the model {diff.result}, but gave {found}")


def update(base: TensorStream, diff: Diff) -> Iterator[tuple[str, torch.Tensor]]:
    """The new model's tensors in the order of their names, one at a time; nothing is hashed.

    The base comes in the order of names as well, and is the one that the diff was made for.
    """
    return _merged(base, diff, partial(_tensor, diff))


Held = TypeVar("Held")


def _merged(
    base: Iterable[tuple[str, Held]], diff: Diff, changed: Callable[[Entry, Held | None], Held]
) -> Iterator[tuple[str, Held]]:
    """The tensors that stay, and what `changed` makes of the others, in the order of names."""
    waiting = deque(diff.entries)

    def made(entry: Entry, held: Held | None) -> Iterator[tuple[str, Held]]:
        if entry.change != Change.REMOVED:
            yield entry.name, changed(entry, held)

    for name, held in base:
        while waiting and waiting[0].name < name:
            yield from made(waiting.popleft(), None)
        if waiting and waiting[0].name == name:
            yield from made(waiting.popleft(), held)
        else:
            yield name, held
    for entry in waiting:
        yield from made(entry, None)


def _tensor(diff: Diff, entry: Entry, old: torch.Tensor | None) -> torch.Tensor:
    """The entry's new tensor."""
    held = None if old is None else Stored(old.dtype, tuple(old.shape), _runs(old))
    dtype, shape, runs = _stored(diff, entry, held)
    flat = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
    _gather(runs, flat.numpy())
    return flat.view(dtype).reshape(shape)


def _runs(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    """A tensor's values as a file has them."""
    return _blocks(np.frombuffer(raw(tensor), np.uint8), tensor.element_size())


def _stored(diff: Diff, entry: Entry, old: Stored | None) -> Stored:
    """The entry's new tensor, whose runs are computed as they are asked for."""
    dtype: torch.dtype = getattr(torch, entry.dtype)
    if entry.change == Change.VERBATIM:
        return Stored(dtype, entry.shape, [np.frombuffer(entry.content, np.uint8)])
    runs: Iterable[np.ndarray] = ()
    if old is not None and entry.change != Change.FRESH:
        runs = (widened(run, entry.dtype) for run in old.runs)
    new = _new_runs(diff, entry, runs)
    return Stored(dtype, entry.shape, (narrowed(run, entry.dtype) for run in new))


def _new_runs(diff: Diff, entry: Entry, old: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The entry's new values, in float32, run by run; `old` are those of the base's tensor."""
    for number, segment in enumerate(entry.segments):
        fresh = number or entry.change == Change.FRESH
        base = _zeros(segment.values) if fresh else old
        yield from _segment_runs(diff, entry.name, number, base, segment)


def _segment_runs(
    diff: Diff, name: str, number: int, base: Iterable[np.ndarray], segment: Segment
) -> Iterable[np.ndarray]:
    if not len(segment.codes):
        return base
    if segment.form == Form.SPARSE:
        return sparse.apply(base, segment, diff.kind)
    array = _array(segment, diff)
    keys = hashed.keys(diff.seed, name, number, diff.hashes)
    return hashed.apply(base, array, keys, segment.form == Form.ADDITIVE)


def _array(segment: Segment, diff: Diff) -> np.ndarray:
    """A, float32 (cells,), computed in runs: on the way some places are needed for each value."""
    array = np.empty(len(segment.codes), np.float32)
    _gather((values(run, diff.kind, segment.scale) for run in _blocks(segment.codes)), array)
    return array


def segment_values(diff: Diff, part: Part, segment: Segment) -> np.ndarray:
    """The new values of the part that a segment changes: those of its dtype, in float32."""
    runs = _segment_runs(diff, part.name, part.number, _blocks(part.base), segment)
    new = np.empty_like(part.base)
    _gather((rounded(run, part.dtype) for run in runs), new)
    return new


def _blocks(flat: np.ndarray, size: int = 1) -> Iterator[np.ndarray]:
    """Runs of values, each of which takes `size` places."""
    return (flat[first:last] for first, last in hashed.blocks(len(flat), size * hashed.BLOCK))


def _zeros(count: int) -> Iterator[np.ndarray]:
    return (np.zeros(last - first, np.float32) for first, last in hashed.blocks(count))


def _gather(runs: Iterable[np.ndarray], flat: np.ndarray) -> None:
    """Fill an array with one run after another."""
    first = 0
    for run in runs:
        flat[first : first + len(run)] = run
        first += len(run)
