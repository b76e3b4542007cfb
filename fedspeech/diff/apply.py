"""A diff applied to the model that it was made for: its base's hash before, its result's after."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedspeech import layout
from fedspeech.diff import hashed, sparse, wire
from fedspeech.diff.contents import Change, Diff, Entry, Form, Segment
from fedspeech.diff.values import values
from fedspeech.errors import DiffError
from fedspeech.layout import Layout
from fedspeech.tensors import (
    Tensors,
    TensorStream,
    hash_tensor,
    sha256,
    sha256_of,
    stream,
    write_whole,
)


def apply(old: Mapping[str, torch.Tensor], data: bytes) -> Tensors:
    """The new model; tensors that stay as they are, are those of `old`.

    Raises DiffError where the diff is damaged or newer than this program, is for another model, or
    does not give the model that it names.
    """
    diff = wire.decode(data)
    check_base(diff, sha256(old))
    wire.check_fresh(diff.entries, len(data), sum(tensor.numel() for tensor in old.values()))
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
    diff = wire.decode(data)
    before = layout.read(old)
    check_base(diff, sha256_of(_mapped_apart(old, before)))
    values = sum(math.prod(shape) for _, shape in before.tensors.values())
    wire.check_fresh(diff.entries, len(data), values)

    def save(part: Path) -> None:
        digest = hashlib.sha256()
        model = _hashed(update(_mapped_apart(old, before), diff), digest)
        layout.write(part, _layout(before, diff), model)
        check_result(diff, digest.hexdigest())

    write_whole(new, save)
    return diff.result


def _mapped_apart(path: Path, layout: Layout) -> TensorStream:
    """The tensors of a file; what was mapped for one goes when it goes, and not at the end."""
    return (pair for name in layout.tensors for pair in stream(path, [name]))


def _layout(old: Layout, diff: Diff) -> Layout:
    """Of the new model's file; what else the old one says of itself stays."""
    found = dict(old.tensors)
    for entry in diff.entries:
        found[entry.name] = getattr(torch, entry.dtype), entry.shape
        if entry.change == Change.REMOVED:
            del found[entry.name]
    return Layout(found, old.notes)


def _hashed(stream: TensorStream, digest: "hashlib._Hash") -> TensorStream:
    """What passes, and is hashed as it does."""
    for name, tensor in stream:
        hash_tensor(digest, name, tensor)
        yield name, tensor


def check_base(diff: Diff, found: str) -> None:
    """Raise DiffError unless the model with this hash is what the diff was made for."""
    if found != diff.base:
        raise DiffError(f"the diff is for the model {diff.base}, and this one is {found}")


def check_result(diff: Diff, found: str) -> None:
    """Raise DiffError unless the diff gave the model that it names."""
    if found != diff.result:
        raise DiffError(f"the diff should have given the model {diff.result}, but gave {found}")


def update(base: TensorStream, diff: Diff) -> Iterator[tuple[str, torch.Tensor]]:
    """The new model's tensors in the order of their names, one at a time; nothing is hashed.

    The base comes in the order of names as well. Raises DiffError where it lacks a tensor.
    """
    waiting = deque(diff.entries)
    for name, tensor in base:
        while waiting and waiting[0].name < name:
            yield from _changed(waiting.popleft(), None, diff)
        if waiting and waiting[0].name == name:
            yield from _changed(waiting.popleft(), tensor, diff)
        else:
            yield name, tensor
    for entry in waiting:
        yield from _changed(entry, None, diff)


def _changed(
    entry: Entry, old: torch.Tensor | None, diff: Diff
) -> Iterator[tuple[str, torch.Tensor]]:
    """The entry's new tensor; nothing where it is removed."""
    if entry.change in (Change.CHANGED, Change.GROWN, Change.REMOVED) and old is None:
        raise DiffError(f"the diff changes tensor {entry.name!r}, which the model lacks")
    if entry.change == Change.VERBATIM:
        yield entry.name, _verbatim(entry)
    elif entry.change != Change.REMOVED:
        bases = _bases(entry, old)
        # A diff that goes beyond float32 is found by the hash of its result.
        with np.errstate(over="ignore", invalid="ignore"):
            runs = [
                segment_values(diff, entry.name, number, base, segment)
                for number, (base, segment) in enumerate(zip(bases, entry.segments, strict=True))
            ]
        flat = runs[0] if len(runs) == 1 else np.concatenate(runs)
        yield entry.name, torch.from_numpy(flat).reshape(entry.shape)


def _bases(entry: Entry, old: torch.Tensor | None) -> list[np.ndarray]:
    """What each segment starts from, float32 of shape (values,)."""
    if old is None or entry.change == Change.FRESH:
        return [np.zeros(segment.values, np.float32) for segment in entry.segments]
    before = (entry.rows, *entry.shape[1:]) if entry.change == Change.GROWN else entry.shape
    if old.dtype != torch.float32 or tuple(old.shape) != before:
        raise DiffError(
            f"the diff changes tensor {entry.name!r} of float32 {before}; the model has "
            f"{str(old.dtype).removeprefix('torch.')} {tuple(old.shape)}"
        )
    flat = old.detach().cpu().contiguous().reshape(-1).numpy()
    return [flat, *(np.zeros(s.values, np.float32) for s in entry.segments[1:])]


def segment_values(
    diff: Diff, name: str, number: int, base: np.ndarray, segment: Segment
) -> np.ndarray:
    """The new values of a tensor's segment (0: the first, 1: the new rows), float32."""
    if not len(segment.codes):
        return base
    if segment.form == Form.SPARSE:
        return sparse.apply(base, segment, diff.kind)
    array = values(segment.codes, diff.kind, segment.scale)
    keys = hashed.keys(diff.seed, name, number, diff.hashes)
    return hashed.apply(base, array, keys, segment.form == Form.ADDITIVE)


def _verbatim(entry: Entry) -> torch.Tensor:
    dtype = getattr(torch, entry.dtype)
    if not entry.content:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(bytearray(entry.content), dtype=dtype).reshape(entry.shape)
