"""How safetensors lays a model out in a file, so that one can be read and written run by run.

The format is that of https://github.com/huggingface/safetensors: the length of a JSON header in
eight bytes, the header, and the values. The library itself writes whole models only.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fedspeech.errors import ModelError

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""Their names in the file, where tensors of the last of these come first."""
NOTES = "__metadata__"
LENGTH = struct.Struct("<Q")
RUN_BYTES = 2**18
"""Of a tensor that are in memory at a time; whole values, whatever their dtype."""


class Stored(NamedTuple):
    """A tensor whose values come some at a time: as bytes (uint8), row by row."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    runs: Iterable[np.ndarray]


@dataclass(frozen=True)
class Layout:
    """What a file says before the values: each tensor's dtype and shape, and notes."""

    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    notes: Mapping[str, str]


def read(path: Path) -> Layout:
    """Of a safetensors file, without its values; names in their order.

    Raises ModelError where it cannot be read, or has a dtype that is none of these.
    """
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            for name in sorted(file.keys()):
                about = file.get_slice(name)
                found[name] = about.get_dtype(), tuple(about.get_shape())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable model: {error}") from error
    for name, (dtype, _) in found.items():
        if dtype not in dtypes:
            raise ModelError(f"{path}: tensor {name} is {dtype}; expected {', '.join(dtypes)}")
    return Layout({name: (dtypes[dtype], shape) for name, (dtype, shape) in found.items()}, notes)


def stream(path: Path, layout: Layout) -> Iterator[tuple[str, Stored]]:
    """The tensors of a file in the order of their names; their values are read when they are asked
    for, and before the next tensor is.

    Raises ModelError where the file cannot be read, or ends early.
    """
    try:
        with path.open("rb") as file:
            starts = _starts(file)
            for name, (dtype, shape) in layout.tensors.items():
                size = math.prod(shape) * dtype.itemsize
                yield name, Stored(dtype, shape, _read_runs(file, starts[name], size))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a readable model: {error}") from error


def _starts(file: BinaryIO) -> dict[str, int]:
    (size,) = LENGTH.unpack(file.read(LENGTH.size))
    header = json.loads(file.read(size))
    first = LENGTH.size + size
    header.pop(NOTES, None)
    return {name: first + about["data_offsets"][0] for name, about in header.items()}


def _read_runs(file: BinaryIO, start: int, size: int) -> Iterator[np.ndarray]:
    for first in range(start, start + size, RUN_BYTES):
        file.seek(first)
        data = file.read(min(RUN_BYTES, start + size - first))
        if not data:
            raise ValueError("it ends early")
        yield np.frombuffer(data, np.uint8)


def write(path: Path, layout: Layout, model: Iterable[tuple[str, Iterable[memoryview]]]) -> None:
    """Fill a file with one tensor after another, given as runs of bytes: to the byte what
    safetensors writes of a whole."""
    header, starts = _header(layout)
    with path.open("wb") as file:
        file.write(header)
        for name, runs in model:
            file.seek(len(header) + starts[name])
            for run in runs:
                file.write(run)


def _header(layout: Layout) -> tuple[bytes, dict[str, int]]:
    """The beginning of the file, and where each tensor begins after it."""
    entries: dict[str, object] = {NOTES: dict(layout.notes)} if layout.notes else {}
    starts, end = {}, 0
    ranks = {dtype: -rank for rank, dtype in enumerate(DTYPES)}
    for name in sorted(layout.tensors, key=lambda name: (ranks[layout.tensors[name][0]], name)):
        dtype, shape = layout.tensors[name]
        starts[name], end = end, end + math.prod(shape) * dtype.itemsize
        offsets = (starts[name], end)
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return LENGTH.pack(len(text)) + text, starts
