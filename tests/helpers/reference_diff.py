"""FORMAT.md read by somebody who wants it slow and plain: one number at a time, Python integers.

Imports nothing of ours. Models are dicts of NumPy arrays; only float32, float16, bfloat16 and int64
are known. NumPy has no bfloat16: it is a bit pattern with a field of that name.
"""

import hashlib
import math
import struct
import zlib
from fractions import Fraction

import numpy as np

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
DTYPES = {1: np.float16, 2: BFLOAT16, 3: np.int64}
IN_PART = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.number(1)
            number += (byte % 128) << shift
            shift += 7
            if byte < 128:
                return number


def fixed_checksum(data: bytes) -> bytes:
    """With length and checksum that fit, as somebody would send it who means harm."""
    data = data[:10] + len(data).to_bytes(8, "little") + data[18:]
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def model_hash(model) -> str:
    digest = hashlib.sha256()
    for name in sorted(model):
        array = np.asarray(model[name])
        dtype = "bfloat16" if array.dtype == BFLOAT16 else array.dtype
        digest.update(f"{name}\0torch.{dtype}\0{array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()


# The coded part.


def tails(data: Bytes, widths: list[int]) -> list[int]:
    found = [0] * len(widths)
    for width in range(1, 33):
        places = [i for i, w in enumerate(widths) if w == width]
        for plane in range(width // 8):
            for i in places:
                found[i] += data.number(1) << (8 * plane)
        rest = width % 8
        size = (len(places) * rest + 7) // 8
        bits = data.number(size)
        for j, i in enumerate(places):
            found[i] += (bits >> (j * rest)) % (1 << rest) << (8 * (width // 8))
    return found


def width_of(symbol: int, kept: int) -> int:
    return 0 if symbol < 2 << kept else (symbol >> kept) - 1


def number_of(symbol: int, kept: int, tail: int) -> int:
    width = width_of(symbol, kept)
    return ((symbol - (width << kept)) << width) + tail


def tables_of(data: Bytes) -> list[tuple[int, dict[int, int]]]:
    """One, or 16 of order 1."""
    if data.data[data.at] == 9:
        data.take(1)
        return [table(data) for _ in range(16)]
    return [table(data)]


def order_of(count: int, lanes: int, contexts: int) -> list[tuple[int, int, bool]]:
    """Symbols as they are decoded: number, lane, and whether the one before is its context."""
    if contexts == 1:
        return [(i, i % lanes, False) for i in range(count)]
    run = -(-count // lanes)
    order = [(lane * run + place, lane, place > 0) for place in range(run) for lane in range(lanes)]
    return [(i, lane, known) for i, lane, known in order if i < count]


def table(data: Bytes) -> tuple[int, dict[int, int]]:
    kept, lowest, size = data.number(1), data.varint(), data.varint()
    nibbles = data.take((size + 1) // 2)
    lengths = [(nibbles[i // 2] >> (4 * (i % 2))) % 16 for i in range(size)]
    low = tails(data, [max(length - 1, 0) for length in lengths])
    frequencies = [(1 << length) // 2 + t for length, t in zip(lengths, low, strict=True)]
    return kept, {lowest + i: f for i, f in enumerate(frequencies) if f}


def streams(data: Bytes, counts: list[int]) -> list[list[int]]:
    """Lane by lane, symbol by symbol."""
    tables = [tables_of(data) if count else [] for count in counts]
    words = data.varint()
    lanes = min(max(sum(counts) // 1024, 1), 2048)
    states = [data.number(4) for _ in range(lanes)]
    queue = [data.number(2) for _ in range(words)]
    queue.reverse()
    symbols = []
    for count, some in zip(counts, tables, strict=True):
        symbols.append([0] * count)
        scale = 12 if len(some) > 1 else min(max(count.bit_length(), 8), 14)
        slots = [[(s, f, i) for s, f in sorted(t.items()) for i in range(f)] for _, t in some]
        assert all(len(each) == 1 << scale for each in slots)
        for i, lane, known in order_of(count, lanes, len(some)) if count else ():
            context = min(symbols[-1][i - 1], 15) if known else 0
            symbol, frequency, place = slots[context][states[lane] % (1 << scale)]
            state = frequency * (states[lane] >> scale) + place
            if state < 1 << 16:
                state = (state << 16) + queue.pop()
            states[lane] = state
            symbols[-1][i] = symbol
    assert not queue and set(states) == {1 << 16}
    found = []
    for some, coded in zip(tables, symbols, strict=True):
        kept = some[0][0] if some else 0
        low = tails(data, [width_of(s, kept) for s in coded]) if some else []
        found.append([number_of(s, kept, t) for s, t in zip(coded, low, strict=True)])
    return found


# The container.


def read(file: bytes) -> dict:
    data = Bytes(file)
    assert data.take(8) == b"\x89FSDIFF\n"
    version = data.number(2)
    assert version in (2, 3, 4)
    assert data.number(8) == len(file)
    assert zlib.crc32(file[:-4]) == int.from_bytes(file[-4:], "little")
    diff = {"base": data.take(32).hex(), "result": data.take(32).hex(), "kind": data.number(1)}
    diff.update(hashes=data.number(1), seed=data.number(8))
    entries, name = [], b""
    for _ in range(data.varint()):
        shared = data.varint()
        name = name[:shared] + data.take(data.varint())
        entries.append(entry(data, name.decode(), diff["kind"]))
    assert version >= 3 or all(one["dtype"] == 0 for one in entries if one["segments"])
    segments = [segment for one in entries for segment in one["segments"]]
    assert version == 4 or all(segment["form"] < 3 for segment in segments)
    for one in entries:
        if one["change"] == 3:
            dtype = np.dtype(DTYPES[one["dtype"]])
            content = data.take(int(np.prod(one["shape"])) * dtype.itemsize)
            one["content"] = np.frombuffer(content, dtype).reshape(one["shape"])
    fill(data, segments)
    repeat(segments, (32, 16, 16, 8)[diff["kind"]])
    assert data.at == len(file) - 4
    return {**diff, "entries": entries}


def entry(data: Bytes, name: str, kind: int) -> dict:
    what = data.number(1)
    found = {"name": name, "change": what % 8, "dtype": what // 8, "segments": []}
    if what == 4:
        return found
    if what == 3:
        found["dtype"] = data.number(1)
    assert what < 5 or (found["change"] < 3 and found["dtype"] < 3)
    found["shape"] = tuple(data.varint() for _ in range(data.number(1)))
    values = int(np.prod(found["shape"]))
    runs = [values]
    if found["change"] == 1:
        found["rows"] = data.varint()
        old = values // found["shape"][0] * found["rows"]
        runs = [old, values - old]
    if found["change"] != 3:
        for run in runs:
            count, form = data.varint(), data.number(1)
            has_scale = kind == 3 and count
            scale = struct.unpack("<f", data.take(4))[0] if has_scale else 1.0
            segment = {"values": run, "count": count, "form": form, "scale": scale}
            found["segments"].append({**segment, "gaps": [], "codes": []})
    return found


def fill(data: Bytes, segments: list[dict]) -> None:
    order = []
    for segment in segments:
        everywhere = segment["count"] == segment["values"]
        gaps = 0 if segment["form"] or everywhere else segment["count"]
        segment["lengths"] = {"gaps": gaps, "codes": segment["count"]}
    large = [segment for segment in segments if segment["count"] >= 512]
    small = [segment for segment in segments if segment["count"] < 512]
    order += [[(segment, what)] for segment in large for what in ("gaps", "codes")]
    order += [[(segment, what) for segment in small] for what in ("gaps", "codes")]
    counts = [sum(segment["lengths"][what] for segment, what in group) for group in order]
    for group, numbers in zip(order, streams(data, counts), strict=True):
        for segment, what in group:
            segment[what] = numbers[: segment["lengths"][what]]
            numbers = numbers[segment["lengths"][what] :]


def repeat(segments: list[dict], bits: int) -> None:
    """What repeats others has codes of its own from here on."""
    for i, segment in enumerate(segments):
        if segment["form"] == 3:
            size = segment["values"]
            assert 0 < segment["count"] == size <= 65536
            others = [
                s for s in segments[:i] if s["form"] == 0 and s["count"] == s["values"] == size
            ]
            apart = [-(d + 1) // 2 if d % 2 else d // 2 for d in segment["codes"]]
            pairs = zip(others[-1]["codes"], apart, strict=True)
            segment.update(form=0, codes=[(code + d) % 2**bits for code, d in pairs])


# Applying.


def value(code: int, kind: int, scale: float) -> np.float32:
    if kind == 3:
        whole = code // 2 if code % 2 == 0 else -(code + 1) // 2
        return np.float32(whole) * np.float32(scale)
    width = 32 if kind == 0 else 16
    pattern = (code >> 1) + (code % 2 << (width - 1))
    if kind == 1:
        return np.float32(np.frombuffer(struct.pack("<H", pattern), np.float16)[0])
    return np.frombuffer(struct.pack("<I", pattern << (32 - width)), np.float32)[0]


def cell(seed: int, name: str, part: int, k: int, i: int, size: int) -> int:
    text = struct.pack("<QII", seed, part, k) + name.encode()
    factor, offset = struct.unpack("<II", hashlib.sha256(text).digest()[:8])
    x = ((factor | 1) * i + offset) % 2**32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    x = x ^ (x >> 16)
    return x * size >> 32


def changed(diff: dict, name: str, part: int, base: np.ndarray, segment: dict) -> np.ndarray:
    new = base.copy()
    values = [value(code, diff["kind"], segment["scale"]) for code in segment["codes"]]
    if not values:
        return new
    if segment["form"] == 0:
        place = -1
        for gap, v in zip(segment["gaps"] or [0] * len(values), values, strict=True):
            place += gap + 1
            new[place] = np.float32(base[place] + v)
        return new
    for i, w in enumerate(base):
        sum = None
        for k in range(diff["hashes"]):
            a = values[cell(diff["seed"], name, part, k, i, len(values))]
            sum = a if sum is None else np.float32(sum + a)
        factor = np.float32(sum * np.abs(w)) if segment["form"] == 1 else sum
        new[i] = np.float32(w + factor)
    return new


def widened(array: np.ndarray) -> np.ndarray:
    """Flat, in float32."""
    if array.dtype == BFLOAT16:
        return (array.reshape(-1).view("<u2").astype(np.uint32) << 16).view(np.float32)
    return array.reshape(-1).astype(np.float32)


def rounded(number: float, dtype: np.dtype) -> int:
    """The bit pattern of the nearest finite value: of two as near, the even one.

    Patterns of values that are not negative are in the order of the values.
    """
    largest = 0x7BFF if dtype == np.float16 else 0x7F7F
    low, high, wanted = 0, largest, Fraction(abs(number))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if exactly(middle, dtype) <= wanted else (low, middle - 1)
    above = exactly(min(low + 1, largest), dtype) - wanted
    below = wanted - exactly(low, dtype)
    if low < largest and (above, (low + 1) % 2) < (below, low % 2):
        low += 1
    return low + (0x8000 if math.copysign(1, number) < 0 else 0)


def exactly(pattern: int, dtype: np.dtype) -> Fraction:
    """What a bit pattern of 16 bits without sign stands for."""
    bits, bias = (10, 15) if dtype == np.float16 else (7, 127)
    exponent, fraction = divmod(pattern, 1 << bits)
    if exponent:
        fraction += 1 << bits
    return Fraction(fraction) * Fraction(2) ** (max(exponent, 1) - bias - bits)


def narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Of a dtype, from float32."""
    if dtype == np.float32:
        return values
    return np.array([rounded(float(v), dtype) for v in values], "<u2").view(dtype)


def apply(old: dict[str, np.ndarray], file: bytes) -> dict[str, np.ndarray]:
    diff = read(file)
    assert model_hash(old) == diff["base"]
    new = dict(old)
    for one in diff["entries"]:
        name = one["name"]
        before = new.pop(name, None)
        if one["change"] == 3:
            new[name] = one["content"]
        elif one["change"] != 4:
            starts = np.zeros(int(np.prod(one["shape"])), np.float32)
            if one["change"] != 2:
                assert before.dtype == IN_PART[one["dtype"]]
                starts[: before.size] = widened(before)
            runs, at = [], 0
            for part, segment in enumerate(one["segments"]):
                base = starts[at : at + segment["values"]]
                runs.append(changed(diff, name, part, base, segment))
                at += segment["values"]
            values = narrowed(np.concatenate(runs), IN_PART[one["dtype"]])
            new[name] = values.reshape(one["shape"])
    assert model_hash(new) == diff["result"]
    return new
