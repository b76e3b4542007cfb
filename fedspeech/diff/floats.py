"""The dtypes that are changed in part: float32, and float16 and bfloat16 by way of float32.

Half precision is widened exactly, changed as float32, and rounded back to nearest even; what would
be infinite then becomes the largest value of its sign. NumPy has no bfloat16: it is a bit pattern.
"""

import numpy as np

FLOATS = ("float32", "float16", "bfloat16")
"""The container says the place in this row."""
HALVES = FLOATS[1:]
LARGEST_FP16 = np.float32(65504)
LARGEST_BF16 = np.array(0x7F7F0000, np.uint32).view(np.float32)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Values as they are stored (uint8) in float32; of float32 itself the same memory."""
    if dtype == "float16":
        return stored.view(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        wide = stored.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return stored.view(np.float32)


def narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest values (float32) of a dtype as they are stored (uint8)."""
    return (patterns(values, dtype) if dtype in HALVES else values).view(np.uint8)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest values of a dtype, in float32."""
    return widened(narrowed(values, dtype), dtype)


def patterns(values: np.ndarray, dtype: str) -> np.ndarray:
    """Bit patterns (uint16) of the nearest values in half precision."""
    if dtype == "float16":
        short: np.ndarray = np.clip(values, -LARGEST_FP16, LARGEST_FP16).astype(np.float16)
        return short.view(np.uint16)
    wide: np.ndarray = np.clip(values, -LARGEST_BF16, LARGEST_BF16).view(np.uint32)
    wide = wide + np.uint32(0x7FFF) + (wide >> 16 & 1)
    return (wide >> 16).astype(np.uint16)
