"""Where the bytes of a diff go, tensor by tensor, and how few they could be.

Bytes are those of the container itself: its entries, and the streams of its coded part. What they
are held against, the bound, is log2 C(N, n) for n positions among N, and the order-0 entropy of the
stored values with the tables that it needs: one for each segment or one for all, whichever is
smaller. Values in fp32 count 32 bits; what is sent verbatim counts whole, and so does what repeats
another segment.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedspeech.diff import entropy, wire
from fedspeech.diff.contents import Change, Diff, Entry, Form, Segment, part_name
from fedspeech.diff.fields import Fields, metered
from fedspeech.diff.streams import LARGE, numbers, streams
from fedspeech.diff.values import BITS, MOST, Kind

ALPHABETS = {**{kind: 2**bits for kind, bits in BITS.items()}, Kind.INT8: 2 * MOST + 1}
"""How many different values there are."""
HEADER, TOGETHER = "(header)", "(small tensors)"
"""Rows that belong to no tensor."""


@dataclass(frozen=True)
class Cost:
    """A segment of a tensor, or what belongs to none of them. Sizes are in bytes.

    `entry` says what becomes of the tensor; its first segment has it. `positions` and `values` are
    None where a segment of few codes shares its streams with others of that kind, and then the
    bound is 0: the row `(small tensors)` has them of all. `count` codes change `among` values. A
    row's bound has the table to itself; `least` is that of the whole diff.
    """

    name: str
    dtype: str = ""
    change: str = ""
    form: str = ""
    count: int = 0
    among: int = 0
    entry: int = 0
    positions: int | None = 0
    values: int | None = 0
    bound: float = 0.0

    @property
    def size(self) -> int:
        """All bytes of the row; those of all rows are the whole diff."""
        return self.entry + (self.positions or 0) + (self.values or 0)


def costs(data: bytes) -> list[Cost]:
    """The header, each segment of each tensor, and what small ones share.

    Raises DiffError where the diff is damaged, or newer than this program.
    """
    diff = wire.decode(data)
    fields = Fields(memoryview(data)[wire.FIXED.size : -wire.CHECKSUM.size])
    read = wire.read_entries(fields, diff.kind, fields.varint())
    entries = list(metered(fields, read))
    fields.take(sum(len(entry.content) for entry in diff.entries))
    segments = [segment for entry in diff.entries for segment in entry.segments]
    shared = streams(segments)
    counts = [len(each) for each in numbers(segments)]
    sizes = entropy.sizes(fields.take(fields.left), counts)
    alone = {stream[0]: size for stream, size in zip(shared[:-2], sizes, strict=False)}
    rows = [*_of_entries(diff, entries, alone), _together(diff, segments, sizes[-2], sizes[-1])]
    return [Cost(HEADER, entry=len(data) - sum(row.size for row in rows)), *rows]


def _of_entries(
    diff: Diff, read: Sequence[tuple[Entry, int]], alone: dict[tuple[int, str], int]
) -> Iterator[Cost]:
    place = 0
    for entry, (sent, size) in zip(diff.entries, read, strict=True):
        if not entry.segments:
            yield _unsegmented(entry, size)
        for part, segment in enumerate(entry.segments):
            if large := len(segment.codes) >= LARGE:
                positions, values = alone.get((place, "gaps"), 0), alone[place, "codes"]
            yield Cost(
                part_name(entry.name, part),
                entry.dtype,
                entry.change.name.lower(),
                sent.segments[part].form.name.lower(),
                len(segment.codes),
                segment.values,
                0 if part else size,
                positions if large else None,
                values if large else None,
                bound([segment], diff.kind) if large else 0.0,
            )
            place += 1


def _unsegmented(entry: Entry, size: int) -> Cost:
    """A tensor that is sent verbatim, or removed."""
    change, content = entry.change.name.lower(), len(entry.content)
    if entry.change == Change.REMOVED:
        return Cost(entry.name, change=change, entry=size)
    count = math.prod(entry.shape)
    return Cost(entry.name, entry.dtype, change, "", count, count, size, 0, content, content)


def _together(diff: Diff, segments: Sequence[Segment], positions: int, values: int) -> Cost:
    small = [segment for segment in segments if len(segment.codes) < LARGE]
    return Cost(
        TOGETHER,
        count=sum(len(segment.codes) for segment in small),
        among=sum(segment.values for segment in small),
        positions=positions,
        values=values,
        bound=bound(small, diff.kind),
    )


def least(diff: Diff) -> float:
    """The bound of a whole diff, in bytes."""
    segments = [segment for entry in diff.entries for segment in entry.segments]
    apart = sum(bound([segment], diff.kind) for segment in segments)
    verbatim = sum(len(entry.content) for entry in diff.entries)
    return verbatim + min(apart, bound(segments, diff.kind))


def bound(segments: Sequence[Segment], kind: Kind) -> float:
    """The bound of some segments whose codes share a table, in bytes.

    Positions: log2 C(N, n) of each sparse segment, for its n changes that are not zero. Values: the
    entropy of what is left of the codes, and a table: which of the A codes occur, log2 C(A, m), and
    how often each, log2 C(n - 1, m - 1).
    """
    positions, left = 0.0, [np.empty(0, np.uint32)]
    for segment in segments:
        codes = segment.codes
        if segment.form == Form.SPARSE:
            codes = codes[codes != 0]
            positions += _choices(segment.values, len(codes))
        left.append(codes)
    codes = np.concatenate(left)
    number = len(codes)
    if kind == Kind.FP32 or not number:
        return (positions + 32 * number) / 8
    _, counts = np.unique(codes, return_counts=True)
    entropy = float(np.sum(counts * np.log2(number / counts)))
    table = _choices(ALPHABETS[kind], len(counts)) + _choices(number - 1, len(counts) - 1)
    return (positions + entropy + table) / 8


def _choices(among: int, chosen: int) -> float:
    """log2 C(among, chosen)."""
    parts = math.lgamma(chosen + 1) + math.lgamma(among - chosen + 1)
    return (math.lgamma(among + 1) - parts) / math.log(2)
