"""How safetensors lays a model out in a file, so that one can be written tensor by tensor.

The format is that of https://github.com/huggingface/safetensors: the length of a JSON header in
eight bytes, the header, and the values. The library itself writes whole models only.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fedspeech.errors import ModelError
from fedspeech.tensors import TensorStream, raw

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


def write(path: Path, layout: Layout, model: TensorStream) -> None:
    """Fill a file with one tensor after another: to the byte what safetensors writes of a whole."""
    header, starts = _header(layout)
    with path.open("wb") as file:
        file.write(header)
        for name, tensor in model:
            file.seek(len(header) + starts[name])
            file.write(raw(tensor))


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
    return struct.pack("<Q", len(text)) + text, starts
