"""What a diff's values are stored as: fp32, fp16, bf16, or int8 with a scale for each segment.

A code is a whole number whose size grows with the value's magnitude; the sign is its lowest bit.
Every operation is one of IEEE 754 in round-to-nearest-even, so that all machines agree to the bit.
"""

from enum import IntEnum

import numpy as np

from fedspeech.diff import floats
from fedspeech.errors import DiffError


class Kind(IntEnum):
    """How a value is stored; the number stands in the header."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    INT8 = 3


BITS = {Kind.FP32: 32, Kind.FP16: 16, Kind.BF16: 16, Kind.INT8: 8}
"""Codes are below two to the power of this."""
HALF = {Kind.FP16: "float16", Kind.BF16: "bfloat16"}
MOST = 127
"""int8 is -127 ... 127."""
LARGEST_SCALE = float(np.finfo(np.float32).max) / MOST


def kind(name: str) -> Kind:
    """Raises DiffError for a name that is none of fp32, fp16, bf16, int8."""
    if name.upper() not in Kind.__members__:
        known = ", ".join(known.lower() for known in Kind.__members__)
        raise DiffError(f"values: expected one of {known}, found {name!r}")
    return Kind[name.upper()]


def codes(values: np.ndarray, kind: Kind, scale: float) -> np.ndarray:
    """The nearest codes (uint32) of finite values (float32); what is too large becomes the largest.

    The scale, a float32, is that of int8: the value of 1.
    """
    if kind == Kind.INT8:
        whole = np.clip(np.rint(values / np.float32(scale)), -MOST, MOST).astype(np.int32)
        return (np.abs(whole) * 2 - (whole < 0)).astype(np.uint32)
    if kind in HALF:
        return _sign_last(floats.patterns(values, HALF[kind]).astype(np.uint32), 16)
    return _sign_last(values.view(np.uint32), 32)


def scale_of(values: np.ndarray, step: float) -> float:
    """The least scale of at least `step` with which int8 holds all of the values; a float32."""
    largest = float(np.abs(values).max(initial=0)) / MOST
    return float(np.float32(min(max(step, largest), LARGEST_SCALE))) or 1.0


def values(codes: np.ndarray, kind: Kind, scale: float) -> np.ndarray:
    """What the codes (unsigned) stand for, float32."""
    codes = codes.astype(np.uint32, copy=False)
    if kind == Kind.INT8:
        half = (codes + np.uint32(1) >> 1).astype(np.float32)
        return np.where(codes & 1, -half, half) * np.float32(scale)
    width = BITS[kind]
    found = codes >> 1
    found |= (codes & 1) << width - 1
    if kind == Kind.FP16:
        return found.astype(np.uint16).view(np.float16).astype(np.float32)
    return (found << 32 - width).view(np.float32)


def _sign_last(patterns: np.ndarray, width: int) -> np.ndarray:
    return patterns << 1 & np.uint32((1 << width) - 1) | patterns >> width - 1
