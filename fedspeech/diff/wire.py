"""The container: what a diff says, as bytes and back. FORMAT.md is its specification.

Encoding is deterministic. Decoding checks the bytes' length and checksum first, and every count
against what there is before anything of its size is allocated.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedspeech.diff import entropy, repeats
from fedspeech.diff.contents import MOST_HASHES, Change, Diff, Entry, Form, Segment
from fedspeech.diff.fields import Fields, damaged, varint
from fedspeech.diff.floats import FLOATS, HALVES
from fedspeech.diff.streams import numbers, streams
from fedspeech.diff.values import BITS, Kind
from fedspeech.errors import DiffError

MAGIC = b"\x89FSDIFF\n"
VERSION = 4
"""That of a diff with segments that repeat others."""
HALF_PRECISION = 3
"""That of one with tensors in half precision that change in part, at most."""
OLDEST = 2
"""That of one with neither."""
FIXED = struct.Struct("<8sHQ32s32sBBQ")
"""Magic, version, length, base, result, kind of values, hash functions, seed."""
PREFIX = struct.Struct("<8sHQ")
CHECKSUM = struct.Struct("<I")
SCALE = struct.Struct("<f")
MOST_VALUES = 2**32 - 1
"""Of one tensor; positions are hashed in 32 bits."""
LONGEST_NAME = 1023
"""Bytes."""
NO_NAME = "__metadata__"
"""Of no tensor: a safetensors file has its notes there."""
HASHED = (Form.MULTIPLICATIVE, Form.ADDITIVE)
"""Forms that need hash functions."""
DTYPE_STEP = 8
"""What the byte of what becomes of a tensor has more for each place in `FLOATS`."""
DTYPES = (
    *("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "complex64", "float8_e4m3fn", "float8_e5m2"),
)
"""Of what is sent verbatim; the container says the place in this row."""
ITEM_SIZES = (8, 2, 2, 8, 4, 2, 1, 1, 1, 2, 4, 8, 8, 1, 1)
"""Bytes of a value."""


def encode(diff: Diff) -> bytes:
    """The container's bytes; equal diffs give equal bytes."""
    diff = repeats.folded(diff)
    segments = [segment for entry in diff.entries for segment in entry.segments]
    body = [varint(len(diff.entries)), *_entries(diff)]
    body += [entry.content for entry in diff.entries]
    body += [entropy.encode(numbers(segments))]
    size = FIXED.size + sum(map(len, body)) + CHECKSUM.size
    hashes = bytes.fromhex(diff.base), bytes.fromhex(diff.result)
    version = _least_version(diff.entries)
    fixed = FIXED.pack(MAGIC, version, size, *hashes, diff.kind, diff.hashes, diff.seed)
    content = b"".join([fixed, *body])
    return content + CHECKSUM.pack(zlib.crc32(content))


def _least_version(entries: Iterable[Entry]) -> int:
    """The first version that says what these entries say."""
    parts = [entry for entry in entries if entry.segments]
    if any(segment.form == Form.REPEATED for entry in parts for segment in entry.segments):
        return VERSION
    return HALF_PRECISION if any(entry.dtype in HALVES for entry in parts) else OLDEST


def about(diff: Diff) -> int:
    """`len(encode(diff))` within some in a thousand: for a search, which measures what it finds."""
    diff = repeats.folded(diff)
    segments = [segment for entry in diff.entries for segment in entry.segments]
    coded = entropy.about(numbers(segments))
    content = sum(len(entry.content) for entry in diff.entries)
    return FIXED.size + sum(map(len, _entries(diff))) + content + coded + CHECKSUM.size


def _entries(diff: Diff) -> Iterator[bytes]:
    before = b""
    for entry in diff.entries:
        name = _name(entry)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, name, strict=False))
        shared = len(list(same))
        yield varint(shared) + varint(len(name) - shared) + name[shared:] + bytes([_what(entry)])
        before = name
        if entry.change == Change.REMOVED:
            continue
        if entry.change == Change.VERBATIM:
            yield bytes([DTYPES.index(entry.dtype)])
        yield b"".join([bytes([len(entry.shape)]), *map(varint, entry.shape)])
        if entry.change == Change.GROWN:
            yield varint(entry.rows)
        for segment in entry.segments:
            scale = SCALE.pack(segment.scale) if _has_scale(diff.kind, len(segment.codes)) else b""
            yield varint(len(segment.codes)) + bytes([segment.form]) + scale


def _what(entry: Entry) -> int:
    """What becomes of a tensor, and its dtype where it changes in part."""
    return entry.change + (DTYPE_STEP * FLOATS.index(entry.dtype) if entry.segments else 0)


def _name(entry: Entry) -> bytes:
    name = entry.name.encode()
    if entry.name == NO_NAME:
        raise DiffError(f"no tensor may be named {NO_NAME}: files have their notes there")
    if len(name) > LONGEST_NAME:
        raise DiffError(f"tensor {entry.name}: a name of more than {LONGEST_NAME} bytes")
    return name


def _has_scale(kind: Kind, count: int) -> bool:
    return kind == Kind.INT8 and count > 0


def decode(data: bytes) -> Diff:
    """What the container says. Raises DiffError where it is damaged, or newer than this program."""
    return filled(*outline(data))


def outline(data: bytes) -> tuple[Diff, memoryview]:
    """What it says but for gaps and codes, which are counted, and the bytes that they come from.

    It takes memory for its entries, however many values they are of. Raises as `decode` does.
    """
    fixed = _checked(data)
    fields = Fields(memoryview(data)[FIXED.size : -CHECKSUM.size])
    version, base, result, kind, hashes, seed = fixed
    if kind not in list(Kind) or hashes > MOST_HASHES:
        raise damaged(f"values of kind {kind}, {hashes} hash functions")
    entries = list(read_entries(fields, Kind(kind), fields.varint()))
    _check_hashes(entries, hashes)
    if (least := _least_version(entries)) > version:
        raise damaged(f"format version {version}, and it says what is of version {least}")
    entries = [
        replace(entry, content=bytes(fields.take(_content_size(entry)))) for entry in entries
    ]
    diff = Diff(base.hex(), result.hex(), Kind(kind), tuple(entries), hashes, seed)
    return diff, fields.take(fields.left)


def filled(diff: Diff, coded: memoryview) -> Diff:
    """An outline with its gaps and codes. Raises as `decode` does."""
    entries = tuple(_filled(diff.entries, coded))
    for entry in entries:
        for segment in entry.segments:
            if (largest := int(segment.codes.max(initial=0))) >> BITS[diff.kind]:
                raise damaged(f"{entry.name!r}: code {largest} in {diff.kind.name.lower()}")
    return repeats.unfolded(replace(diff, entries=entries))


def base_of(data: bytes) -> str:
    """The hash of the model that a diff is for. Raises DiffError where the diff is damaged."""
    return _checked(data)[1].hex()


def result_of(data: bytes) -> str:
    """The hash of the model that a diff gives. Raises DiffError where the diff is damaged."""
    return _checked(data)[2].hex()


def promised(data: bytes) -> int:
    """The length of the whole diff, as its first bytes say.

    Raises DiffError where they are not those of a diff, or of a newer one than this program knows.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < PREFIX.size:
        raise DiffError("this is not a diff: it does not begin as one")
    _, version, size = PREFIX.unpack_from(data)
    if version > VERSION:
        raise DiffError(
            f"the diff has format version {version}, and this program knows versions up to "
            f"{VERSION}; update it"
        )
    if version < OLDEST:
        raise damaged(f"format version {version}")
    return int(size)


def _checked(data: bytes) -> tuple[int, bytes, bytes, int, int, int]:
    """The fixed fields but for magic and length, which say whether the rest is whole."""
    size = promised(data)
    if size < len(data):
        raise damaged(f"more than the {size} bytes that its header says")
    if size > len(data) or size < FIXED.size + CHECKSUM.size:
        raise damaged(f"{len(data)} bytes, and its header says {size}")
    (checksum,) = CHECKSUM.unpack_from(data, size - CHECKSUM.size)
    if zlib.crc32(memoryview(data)[: -CHECKSUM.size]) != checksum:
        raise damaged("its checksum does not fit its content")
    _, version, _, *fields = FIXED.unpack_from(data)
    return version, *fields


def read_entries(fields: Fields, kind: Kind, count: int) -> Iterator[Entry]:
    """One after another, with segments that are counted, not yet filled in."""
    before = b""
    for number in range(count):
        shared, more = fields.varint(), fields.varint()
        if shared > len(before) or shared + more > LONGEST_NAME:
            raise damaged(f"a name of {shared + more} bytes")
        name = before[:shared] + bytes(fields.take(more))
        if number and name <= before:
            raise damaged("names out of order")
        before = name
        yield _read_entry(fields, kind, _text(name))


def _text(name: bytes) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise damaged("a name that is no text") from None
    if text == NO_NAME:
        raise damaged(f"a tensor named {NO_NAME}")
    return text


def _read_entry(fields: Fields, kind: Kind, name: str) -> Entry:
    what = fields.byte()
    dtype, number = divmod(what, DTYPE_STEP)
    if number not in list(Change) or dtype >= (len(FLOATS) if number < Change.VERBATIM else 1):
        raise damaged(f"{name!r}: change of kind {what}")
    change = Change(number)
    if change == Change.REMOVED:
        return Entry(name, change)
    place = fields.byte() if change == Change.VERBATIM else None
    if place is not None and place >= len(DTYPES):
        raise damaged(f"{name!r}: dtype {place}")
    shape = tuple(fields.varint() for _ in range(fields.byte()))
    if extent(shape) > MOST_VALUES:
        raise damaged(f"{name!r}: shape {shape}")
    values = math.prod(shape)
    if place is not None:
        return Entry(name, change, shape, dtype=DTYPES[place])
    rows, runs = 0, [values]
    if change == Change.GROWN:
        rows = fields.varint()
        if not shape or rows >= shape[0]:
            raise damaged(f"{name!r}: grown from {rows} rows to shape {shape}")
        runs = [rows * math.prod(shape[1:]), (shape[0] - rows) * math.prod(shape[1:])]
    segments = tuple(_read_segment(fields, kind, name, run) for run in runs)
    return Entry(name, change, shape, segments, rows, FLOATS[dtype])


def _read_segment(fields: Fields, kind: Kind, name: str, values: int) -> Segment:
    """With codes that are counted, not yet filled in."""
    count, form = fields.varint(), fields.byte()
    if count > values or form not in list(Form):
        raise damaged(f"{name!r}: {count} values of {values}, form {form}")
    if form == Form.REPEATED and not 0 < count == values <= repeats.MOST:
        raise damaged(f"{name!r}: {count} of {values} values repeat others")
    scale = SCALE.unpack(fields.take(SCALE.size))[0] if _has_scale(kind, count) else 1.0
    if not math.isfinite(scale):
        raise damaged(f"{name!r}: scale {scale}")
    # One number in the memory, however many there will be.
    counted = np.broadcast_to(np.uint32(0), count)
    gaps = counted if form == Form.SPARSE and count < values else counted[:0]
    return Segment(values, Form(form), scale, counted, gaps)


def _check_hashes(entries: Iterable[Entry], hashes: int) -> None:
    for entry in entries:
        if not hashes and any(segment.form in HASHED for segment in entry.segments):
            raise damaged(f"{entry.name!r}: hashed, and there are no hash functions")


def extent(shape: Sequence[int]) -> int:
    """The number of values, as if no dimension were 0: what is counted in between stays below."""
    return math.prod(max(size, 1) for size in shape)


def _content_size(entry: Entry) -> int:
    if entry.change != Change.VERBATIM:
        return 0
    return math.prod(entry.shape) * ITEM_SIZES[DTYPES.index(entry.dtype)]


def _filled(entries: Sequence[Entry], coded: memoryview) -> Iterator[Entry]:
    """The entries with their gaps and codes."""
    segments = [segment for entry in entries for segment in entry.segments]
    shared = streams(segments)
    counts = [[len(getattr(segments[place], what)) for place, what in each] for each in shared]
    decoded = entropy.decode(coded, [sum(count) for count in counts])
    found: dict[tuple[int, str], np.ndarray] = {}
    for stream, count, together in zip(shared, counts, decoded, strict=True):
        found.update(zip(stream, np.split(together, np.cumsum(count)[:-1]), strict=False))
    place = 0
    for entry in entries:
        filled = []
        for segment in entry.segments:
            gaps, codes = found[place, "gaps"], found[place, "codes"]
            filled.append(replace(segment, gaps=gaps, codes=codes))
            place += 1
        yield replace(entry, segments=tuple(filled))
