"""The container: what goes in comes out, to our reader and to a plain one; and every damage."""

import tracemalloc
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import reference_diff
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_diff import fixed_checksum
from small_models import arrays, generations, half_generations, twin_generations

from fedspeech.diff import budget, methods, wire
from fedspeech.diff.apply import apply, apply_file
from fedspeech.diff.contents import Change, Diff, Entry, Form, Segment
from fedspeech.diff.floats import FLOATS
from fedspeech.diff.values import Kind
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256, write

BASE, RESULT = "01" * 32, "ab" * 32
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CODES = {
    kind: st.integers(0, limit)
    for kind, limit in zip(Kind, (2**32 - 1, 2**16 - 1, 2**16 - 1, 254), strict=True)
}


@st.composite
def segments(draw, values: int, kind: Kind) -> Segment:
    form = draw(st.sampled_from([Form.SPARSE, Form.MULTIPLICATIVE, Form.ADDITIVE]))
    count = draw(st.integers(0, values))
    codes = np.array(draw(st.lists(CODES[kind], min_size=count, max_size=count)), np.uint32)
    gaps = np.empty(0, np.uint32)
    if form == Form.SPARSE and 0 < count < values:
        places = sorted(draw(st.permutations(range(values)))[:count])
        gaps = (np.diff(places, prepend=-1) - 1).astype(np.uint32)
    has_scale = kind == Kind.INT8 and count
    scale = draw(st.floats(2**-6, 64, width=32)) if has_scale else 1.0
    return Segment(values, form, scale, codes, gaps)


@st.composite
def entries(draw, name: str, kind: Kind) -> Entry:
    change = draw(st.sampled_from(Change))
    if change == Change.REMOVED:
        return Entry(name, change)
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    if change == Change.VERBATIM:
        content = draw(
            st.binary(min_size=8 * int(np.prod(shape)), max_size=8 * int(np.prod(shape)))
        )
        return Entry(name, change, shape, dtype="int64", content=content)
    dtype = draw(st.sampled_from(FLOATS))
    if change == Change.GROWN:
        shape = (draw(st.integers(1, 5)), *shape)
        rows, stride = draw(st.integers(0, shape[0] - 1)), int(np.prod(shape[1:]))
        runs = [rows * stride, (shape[0] - rows) * stride]
        found = tuple(draw(segments(run, kind)) for run in runs)
        return Entry(name, change, shape, found, rows, dtype)
    found = (draw(segments(int(np.prod(shape)), kind)),)
    return Entry(name, change, shape, found, dtype=dtype)


@st.composite
def diffs(draw) -> Diff:
    kind = draw(st.sampled_from(Kind))
    names = sorted(draw(st.sets(NAMES, max_size=6)))
    found = tuple(draw(entries(name, kind)) for name in names)
    return Diff(
        BASE, RESULT, kind, found, draw(st.integers(1, 16)), draw(st.integers(0, 2**64 - 1))
    )


def same(left: Diff, right: Diff) -> None:
    strip = lambda e: replace(e, segments=())  # noqa: E731
    assert [strip(e) for e in left.entries] == [strip(e) for e in right.entries]
    assert replace(left, entries=()) == replace(right, entries=())
    for one, other in zip(left.entries, right.entries, strict=True):
        for a, b in zip(one.segments, other.segments, strict=True):
            assert (a.values, a.form, a.scale) == (b.values, b.form, b.scale)
            assert a.codes.tolist() == b.codes.tolist() and a.gaps.tolist() == b.gaps.tolist()


@settings(max_examples=200)
@given(diffs())
def test_what_is_encoded_comes_back(diff):
    data = wire.encode(diff)
    assert wire.encode(diff) == data
    same(wire.decode(data), diff)
    plain = reference_diff.read(data)
    assert (plain["base"], plain["result"], plain["seed"]) == (BASE, RESULT, diff.seed)
    for entry, found in zip(diff.entries, plain["entries"], strict=True):
        assert (found["name"], found["change"]) == (entry.name, entry.change)
        if entry.segments:
            assert FLOATS[found["dtype"]] == entry.dtype
        for segment, read in zip(entry.segments, found["segments"], strict=True):
            assert read["codes"] == segment.codes.tolist()
            assert read["gaps"] == segment.gaps.tolist()
            assert (read["form"], read["scale"]) == (segment.form, segment.scale)


def test_the_empty_diff_is_only_its_header():
    data = wire.encode(Diff(BASE, RESULT, Kind.FP32, ()))
    # 92 bytes of fixed fields, no entries, no words and one lane, checksum.
    assert len(data) == 92 + 1 + 1 + 4 + 4
    same(wire.decode(data), Diff(BASE, RESULT, Kind.FP32, ()))


def test_names_share_what_they_begin_with():
    names = [f"encoder.layers.{i}.weight" for i in range(10)]
    diff = Diff(BASE, RESULT, Kind.FP32, tuple(Entry(n, Change.REMOVED) for n in names))
    assert len(wire.encode(diff)) == 102 + 3 * 10 + len(names[0]) + 9 * len("0.weight")


# Damage.


DIFF = wire.encode(
    Diff(
        BASE,
        RESULT,
        Kind.INT8,
        (
            Entry(
                "a",
                Change.CHANGED,
                (4, 5),
                (
                    Segment(
                        20,
                        Form.SPARSE,
                        0.5,
                        np.array([3, 8], np.uint32),
                        np.array([2, 9], np.uint32),
                    ),
                ),
            ),
            Entry("b", Change.VERBATIM, (2,), dtype="int16", content=b"1234"),
        ),
    )
)


def test_a_file_that_is_something_else():
    for other in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), DIFF[:17], DIFF[1:]):
        with pytest.raises(DiffError, match="this is not a diff"):
            wire.decode(other)


def test_a_newer_version_says_so_whatever_else_it_holds():
    newer = DIFF[:8] + (5).to_bytes(2, "little") + b"something else altogether"
    with pytest.raises(
        DiffError, match="format version 5, and this program knows versions up to 4"
    ):
        wire.decode(newer)


def test_every_truncation_is_told():
    for length in range(18, len(DIFF)):
        with pytest.raises(
            DiffError, match=f"damaged: {length} bytes, and its header says {len(DIFF)}"
        ):
            wire.decode(DIFF[:length])


def test_every_flipped_bit_is_told():
    for place in range(8 * len(DIFF)):
        other = bytearray(DIFF)
        other[place // 8] ^= 1 << place % 8
        with pytest.raises(DiffError):
            wire.decode(bytes(other))


def crafted(change: bytes, where: int) -> bytes:
    """The diff with other bytes in its entries, and lengths and checksum that fit."""
    return fixed_checksum(DIFF[:where] + change + DIFF[where + len(change) :])


ENTRY = 92 + 1
"""Where the first entry begins: shared, more, "a", change, dimensions, 4, 5, count, form, scale."""


@pytest.mark.parametrize(
    ("change", "where", "told"),
    [
        (b"\x04", 82, "values of kind 4"),
        (b"\x11", 83, "17 hash functions"),
        (b"\x01", ENTRY, "a name of 2 bytes"),
        (b"\xff\x7f", ENTRY + 1, "a name of 16383 bytes"),
        (b"\xff", ENTRY + 2, "a name that is no text"),
        (b"c", ENTRY + 2, "names out of order"),
        (b"\x05", ENTRY + 3, "'a': change of kind 5"),
        (b"\x18", ENTRY + 3, "'a': change of kind 24"),
        (b"\x0b", ENTRY + 3, "'a': change of kind 11"),
        (b"\x0c", ENTRY + 3, "'a': change of kind 12"),
        (b"\x08", ENTRY + 3, "format version 2, and it says what is of version 3"),
        (b"\x02\xff\xff\xff\xff\x0f\x02", ENTRY + 4, "'a': shape"),
        (b"\x15", ENTRY + 7, "'a': 21 values of 20"),
        (b"\x04", ENTRY + 8, "form 4"),
        (b"\x03", ENTRY + 8, "'a': 2 of 20 values repeat others"),
        (b"\x01", ENTRY + 8, "'a': hashed, and there are no hash functions"),
        (b"\x00\x00\x80\x7f", ENTRY + 9, "'a': scale inf"),
        (b"\x0f", ENTRY + 9 + 4 + 4, "'b': dtype 15"),
    ],
)
def test_bytes_that_mean_harm_are_told(change, where, told):
    with pytest.raises(DiffError, match=f"the diff is damaged: .*{told}"):
        wire.decode(crafted(change, where))


def test_a_place_beyond_the_tensor_is_told():
    old, new = generations()
    made = budget.make(old, new, share=0.1)
    diff = wire.decode(made.data)
    entry = next(e for e in diff.entries if e.name == "dense.weight")
    wrong = replace(entry.segments[0], gaps=entry.segments[0].gaps + np.uint32(100))
    changed = [replace(e, segments=(wrong,)) if e is entry else e for e in diff.entries]
    with pytest.raises(DiffError, match=r"damaged: a change of value \d+ of 720"):
        apply(old, wire.encode(replace(diff, entries=tuple(changed))))


def test_a_tensor_that_no_file_can_hold_is_told():
    """A safetensors file has its notes under that name, and would be unreadable."""
    with pytest.raises(DiffError, match=r"^no tensor may be named __metadata__: files have their"):
        budget.make({}, {"__metadata__": torch.ones(2)})
    data = budget.make({}, {"__metadatb__": torch.ones(2)}).data
    with pytest.raises(DiffError, match="the diff is damaged: a tensor named __metadata__"):
        wire.decode(fixed_checksum(data.replace(b"__metadatb__", b"__metadata__")))


@pytest.mark.parametrize(
    ("kind", "most"), [(Kind.INT8, 255), (Kind.FP16, 2**16 - 1), (Kind.BF16, 2**16 - 1)]
)
def test_a_code_that_stands_for_nothing_is_told(kind, most):
    for code, fits in ((most, True), (most + 1, False), (2**32 - 1, False)):
        segment = Segment(1, codes=np.array([code], np.uint32))
        diff = Diff(BASE, RESULT, kind, (Entry("w", Change.CHANGED, (1,), (segment,)),))
        if fits:
            same(wire.decode(wire.encode(diff)), diff)
        else:
            with pytest.raises(
                DiffError, match=f"damaged: 'w': code {code} in {kind.name.lower()}"
            ):
                wire.decode(wire.encode(diff))


def test_a_small_diff_cannot_ask_for_much_memory():
    """Sizes that nobody vouches for: a fresh tensor, and many codes for a few bytes."""
    old = {"b": torch.zeros(3)}
    huge = Entry("a", Change.FRESH, (1 << 16, 1 << 15), (Segment(1 << 31),))
    data = wire.encode(Diff(sha256(old), RESULT, Kind.FP32, (huge,)))
    most = 3 + 256 * len(data)
    with pytest.raises(DiffError, match=f"^2147483648 values start from zero; .* at most {most}$"):
        apply(old, data)
    codes = np.broadcast_to(np.uint32(0), 1 << 12)
    many = Entry("a", Change.CHANGED, (1 << 31,), (Segment(1 << 31, Form.ADDITIVE, 1.0, codes),))
    data = wire.encode(Diff(BASE, RESULT, Kind.FP32, (many,), 1))
    place = data.index(b"\x80\x20\x02")
    wrong = fixed_checksum(data[:place] + b"\x80\x80\x80\x80\x04\x02" + data[place + 3 :])
    tracemalloc.start()
    with pytest.raises(DiffError, match="1073741824 numbers in"):
        wire.decode(wrong)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("base", ["that of the model", "another"])
@pytest.mark.parametrize("take", ["apply", "apply_file"])
def test_what_is_for_no_such_model_is_refused_before_its_codes_are_in_memory(base, take, tmp_path):
    """Thirty million changes, by as little as a thousandth of their bytes."""
    old, number = {"w": torch.zeros(10)}, 30_000_000
    codes = np.zeros(number, np.uint32)
    entry = Entry("w", Change.CHANGED, (number,), (Segment(number, codes=codes),))
    named = sha256(old) if base == "that of the model" else BASE
    data = wire.encode(Diff(named, RESULT, Kind.FP16, (entry,)))
    assert len(data) < 30_000
    write(tmp_path / "old", old)
    of_file = partial(apply_file, tmp_path / "old", data, tmp_path / "new")
    tracemalloc.start()
    with pytest.raises(DiffError) as told:
        apply(old, data) if take == "apply" else of_file()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    tensor = f"the diff changes tensor 'w' of float32 ({number},); the model has float32 (10,)"
    model = f"the diff is for the model {BASE}, and this one is {sha256(old)}"
    assert str(told.value) == (tensor if base == "that of the model" else model)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("shape", [(0, 1 << 31, 2), (1 << 30, 0, 5), (3, 0, 1 << 31)])
def test_dimensions_beside_a_zero_are_bounded_too(shape):
    empty = Entry("a", Change.FRESH, shape, (Segment(0),))
    with pytest.raises(DiffError, match="the diff is damaged: 'a': shape"):
        wire.decode(wire.encode(Diff(BASE, RESULT, Kind.FP32, (empty,))))


def mutations(data: bytes, number: int):
    """Bits flipped, bytes drawn anew, runs cut out, doubled or cut off; seeded."""
    draw = np.random.default_rng(5)
    for _ in range(number):
        other = bytearray(data)
        for _ in range(draw.integers(1, 4)):
            place = int(draw.integers(len(other)))
            run = int(draw.integers(1, 9))
            match draw.integers(5):
                case 0:
                    other[place] ^= 1 << int(draw.integers(8))
                case 1:
                    other[place] = int(draw.integers(256))
                case 2:
                    del other[place : place + run]
                case 3:
                    other[place:place] = other[place : place + run]
                case 4:
                    other[place : place + run] = draw.bytes(run)
        yield bytes(other)


WAYS = {"sparse": methods.Sparse, "hash": lambda comparison: methods.Hashed(comparison, 3)}


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize(
    ("models", "checksum", "number"),
    [
        (generations, False, 4000),
        (generations, True, 500),
        (half_generations, True, 250),
        (twin_generations, True, 250),
    ],
)
def test_10_000_mutations_never_crash_and_never_give_a_wrong_model(
    models, method, checksum, number
):
    """Some with a checksum made to fit, so that what lies behind it is met."""
    old, new = models()
    made = budget.make(old, new, 700, WAYS[method])
    right, told = sha256(made.result), 0
    for other in mutations(made.data, number):
        try:
            found = apply(old, fixed_checksum(other) if checksum else other)
        except DiffError as error:
            told += 1
            assert len(str(error).splitlines()) == 1
        else:
            # A bit that means nothing, or one that was put back.
            assert sha256(found) == right
    assert told > 0.95 * number
    assert reference_diff.apply(arrays(old), made.data).keys() == new.keys()


@pytest.mark.parametrize("models", [generations, half_generations, twin_generations])
def test_no_mutation_takes_more_memory_than_its_checked_sizes(models):
    """16 bytes for each value that the model has, and for each number that may be in the diff."""
    old, new = models()
    data = budget.make(old, new, 700).data
    values = sum(tensor.numel() for tensor in old.values())
    peaks = []
    for other in mutations(data, 100):
        tracemalloc.start()
        with suppress(DiffError):
            apply(old, fixed_checksum(other))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 16 * (values + (256 + 2048) * len(data))
    assert sorted(peaks)[50] < 1e6
