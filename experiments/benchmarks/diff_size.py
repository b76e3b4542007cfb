"""A diff's size against what it has to tell, and against general compressors.

    python -m experiments.benchmarks.diff_size OLD NEW X.diff fp32|fp16|bf16|int8

OLD is the base and NEW the model that a sparse diff makes of it, both safetensors files: from them
follow which values changed, and by what. The diff itself is weighed and not read, and nothing of
fedspeech is imported. The bound is

    log2 C(N, n) bits for n changes among the N values of each tensor, and
    32 bits for each change in fp32, else the order-0 entropy of the changes as they are stored
    and a table of them: which of the A possible ones occur, log2 C(A, m), and how often each,
    log2 C(n - 1, m - 1), by one table for each tensor or one for all, whichever is smaller;
    what is not float32 and differs is sent as it is.

zstd -19 and xz -9 get the same changes as an array of all values, zeros where nothing changes, each
stored as the diff stores it. The exit status is 1 where the diff is above 1.05 of the bound, 2
where two models do not tell what was sent: the array of a hashed diff (`diff_sizes` weighs that).
"""

import lzma
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file
from scipy.special import gammaln

MOST = 1.05
ALPHABETS = {"fp16": 2**16, "bf16": 2**16, "int8": 255}
NEARLY = 1e-6
Models = Mapping[str, np.ndarray]


class Stored(NamedTuple):
    """What is sent of one tensor: a value for each of `among`, or for some, with zeros elsewhere.

    Values are those that are stored: float32, float16, uint16 (bf16) or int8.
    """

    values: np.ndarray
    sparse: bool = True


def changes(old: Models, new: Models, kind: str) -> Iterator[Stored]:
    """Of each float32 tensor that differs, flat, as a sparse diff stores it; new rows apart.

    Raises ValueError where the changes cannot be stored in this kind of values.
    """
    for name, after in sorted(new.items()):
        before = old.get(name, np.zeros(0, np.float32))
        if after.dtype != np.float32 or np.array_equal(before, after):
            continue
        known = before.size if before.shape[1:] == after.shape[1:] else 0
        flat = after.ravel()
        for start, end in (
            (before.ravel()[:known], flat[:known]),
            (0 * flat[known:], flat[known:]),
        ):
            if end.size:
                yield Stored(_stored(name, start, end, kind))


def verbatim(old: Models, new: Models) -> bytes:
    """What is sent as it is: tensors that are not float32 and differ."""
    return b"".join(
        after.tobytes()
        for name, after in sorted(new.items())
        if after.dtype != np.float32 and not np.array_equal(old.get(name), after)
    )


def _stored(name: str, old: np.ndarray, new: np.ndarray, kind: str) -> np.ndarray:
    difference = new.astype(float) - old
    # float32 forgets what is far smaller than the value that it is added to; steps are estimated.
    unsure = 2 * np.spacing(np.maximum(np.abs(old), np.abs(new))) + NEARLY * np.abs(difference)
    step = _step(difference, unsure) if kind == "int8" else 1.0
    stored = as_stored(difference, kind, step)
    if wrong := np.count_nonzero(np.abs(as_float(stored, kind, step) - difference) > unsure):
        raise ValueError(f"tensor {name}: {wrong} of {len(new)} changes are none of {kind}")
    return stored


def as_stored(values: np.ndarray, kind: str, step: float = 1.0) -> np.ndarray:
    """The nearest values of a kind: float32, float16, the upper half of float32, or int8 steps."""
    if kind == "bf16":
        patterns = values.astype(np.float32).view(np.uint32)
        return (patterns + 0x7FFF + (patterns >> 16 & 1) >> 16).astype(np.uint16)
    if kind == "int8":
        return np.rint(values / step).astype(np.int8)
    return values.astype({"fp32": np.float32, "fp16": np.float16}[kind])


def as_float(stored: np.ndarray, kind: str, step: float = 1.0) -> np.ndarray:
    """What they stand for, float64."""
    if kind == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(float)
    return stored.astype(float) * step


def _step(difference: np.ndarray, unsure: np.ndarray) -> float:
    """The largest number of which no change is more than 127 times, and each a multiple."""
    (places,) = difference.nonzero()
    if not len(places):
        return 1.0
    # The largest first: a step that does not fit is found out soon.
    places = places[np.argsort(-np.abs(difference[places]))]
    sizes, unsure = np.abs(difference[places]), unsure[places]
    for times in range(1, 128):
        step = sizes[0] / times
        for count in (100, len(sizes)):
            some = sizes[:count]
            numbers = np.rint(some / step)
            # Those that float32 knows best say most of it.
            weighted = numbers / unsure[:count] ** 2
            step = float(some @ weighted / (numbers @ weighted))
            if np.any(np.abs(numbers * step - some) > unsure[:count]):
                break
        else:
            return step
    return sizes[0] / 127


def bound(tensors: Sequence[Stored], kind: str) -> float:
    """Bytes that the changes have to take."""
    sent = [each.values[each.values != 0] if each.sparse else each.values for each in tensors]
    positions = sum(
        _choices(each.values.size, some.size)
        for each, some in zip(tensors, sent, strict=True)
        if each.sparse
    )
    if kind == "fp32":
        return (positions + 32 * sum(some.size for some in sent)) / 8
    apart = sum(_values(some, ALPHABETS[kind]) for some in sent)
    together = _values(np.concatenate(sent), ALPHABETS[kind]) if sent else 0.0
    return (positions + min(apart, together)) / 8


def _values(values: np.ndarray, alphabet: int) -> float:
    """Bits of the values and of their table."""
    if not values.size:
        return 0.0
    patterns = values.view(f"u{values.itemsize}")
    counts = np.unique(patterns, return_counts=True)[1]
    entropy = float(np.sum(counts * np.log2(values.size / counts)))
    different = len(counts)
    return entropy + _choices(alphabet, different) + _choices(values.size - 1, different - 1)


def _choices(among: int, chosen: int) -> float:
    """log2 C(among, chosen)."""
    parts = gammaln(chosen + 1) + gammaln(among - chosen + 1)
    return float(gammaln(among + 1) - parts) / np.log(2)


def compressed(tensors: Sequence[Stored], more: bytes = b"") -> dict[str, int]:
    """Bytes by general compressors; zstd is missing where its package is not installed."""
    content = b"".join(each.values.tobytes() for each in tensors) + more
    ways: dict[str, Callable[[bytes], bytes]] = {"xz -9": partial(lzma.compress, preset=9)}
    with suppress(ImportError):
        ways["zstd -19"] = partial(import_module("zstandard").compress, level=19)
    # Half a minute each for 57 MB: side by side.
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(lambda way: len(way(content)), ways.values())
        return dict(zip(ways, sizes, strict=True))


def main(arguments: Sequence[str]) -> int:
    """The script; 1 where the diff is above the limit."""
    if len(arguments) != 4 or arguments[3] not in {"fp32", *ALPHABETS}:
        print(__doc__, file=sys.stderr)
        return 2
    old, new, kind = load_file(arguments[0]), load_file(arguments[1]), arguments[3]
    try:
        tensors, more = list(changes(old, new, kind)), verbatim(old, new)
    except ValueError as error:
        print(
            f"{error}; where {arguments[2]} is hashed, weigh it by itself:\n"
            f"    python -m experiments.benchmarks.diff_sizes {arguments[2]}",
            file=sys.stderr,
        )
        return 2
    size, least = Path(arguments[2]).stat().st_size, bound(tensors, kind) + len(more)
    print(f"{size} bytes, {size / least:.4f} times the bound of {least:.0f}")
    for name, other in compressed(tensors, more).items():
        print(f"{name}: {other} bytes, {other / size:.3f} times as many")
    return int(size > MOST * least)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
