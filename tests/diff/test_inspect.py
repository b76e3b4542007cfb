"""Where bytes go, against what a diff with other content takes; and the bound by exact numbers."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_models import generations

from fedspeech.diff import budget, inspect, methods, wire
from fedspeech.diff.contents import Form, Segment
from fedspeech.diff.values import Kind
from fedspeech.tensors import sha256

HASH = partial(methods.Hashed, seed=9)
PER_LANE = 4
"""Bytes of a lane's state; one for 1024 numbers."""


def layers(rows: int = 300) -> tuple[dict, dict]:
    """Two layers of many values, and biases of few."""
    draw = np.random.default_rng(0)
    old = {
        "a.weight": draw.normal(0, 0.1, (rows, 200)),
        "b.bias": draw.normal(0, 0.1, 100),
        "b.weight": draw.normal(0, 0.5, (rows, 100)),
        "c.bias": draw.normal(0, 0.1, 100),
    }
    new = {name: array * (1 + 0.02 * draw.laplace(size=array.shape)) for name, array in old.items()}
    return tuple(
        {name: torch.from_numpy(array.astype(np.float32)) for name, array in model.items()}
        for model in (old, new)
    )


def by_name(data: bytes) -> dict[str, inspect.Cost]:
    return {row.name: row for row in inspect.costs(data)}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
@pytest.mark.parametrize("models", [generations, layers])
def test_all_rows_are_all_bytes(models, method, kind):
    old, new = models()
    data = budget.make(old, new, None, method, kind, share=0.3).data
    rows = inspect.costs(data)
    assert sum(row.size for row in rows) == len(data)
    assert all(part is None or part >= 0 for r in rows for part in (r.entry, r.positions, r.values))
    assert [row.name for row in (rows[0], rows[-1])] == [inspect.HEADER, inspect.TOGETHER]


@pytest.mark.parametrize("kind", [Kind.FP32, Kind.INT8])
def test_a_tensors_bytes_are_those_that_go_with_it(kind):
    """Without the tensor the diff is shorter by its row, but for lanes and the number of words."""
    old, new = layers()
    data = budget.make(old, new, None, kind=kind, share=0.2).data
    diff = wire.decode(data)
    for name in ("a.weight", "b.weight"):
        row = by_name(data)[name]
        left = replace(diff, entries=tuple(e for e in diff.entries if e.name != name))
        lanes = 2 * row.count / 1024
        assert len(data) - len(wire.encode(left)) == pytest.approx(
            row.size, abs=PER_LANE * lanes + 4
        )


@pytest.mark.parametrize("kind", [Kind.FP16, Kind.INT8])
def test_positions_and_values_are_told_apart(kind):
    """Other values at the same places change what values take, and what they take alone."""
    old, new = layers()
    before = budget.make(old, new, None, kind=kind, share=0.2).data
    diff = wire.decode(before)

    def flat(entry):
        segments = tuple(replace(s, codes=s.codes * 0 + 6) for s in entry.segments)
        return replace(entry, segments=segments)

    after = wire.encode(replace(diff, entries=tuple(flat(entry) for entry in diff.entries)))
    for name in ("a.weight", "b.weight"):
        old_row, new_row = by_name(before)[name], by_name(after)[name]
        assert new_row.positions == pytest.approx(old_row.positions, abs=2)
        # A code that is all there is costs 0.006 bits.
        assert new_row.values < 8 + 0.006 * new_row.count / 8 + 8 < old_row.values / 20


def test_what_rows_say_of_every_kind_of_change():
    old, new = generations()
    data = budget.make(old, new, None, HASH, share=0.5).data
    rows = by_name(data)
    assert rows["gone"] == inspect.Cost("gone", change="removed", entry=rows["gone"].entry)
    count = rows["norm.count"]
    assert (count.change, count.dtype, count.count, count.among) == ("verbatim", "int64", 1, 1)
    assert (count.positions, count.values, count.bound) == (0, 8, 8)
    grown, more = rows["output.weight"], rows["output.weight (new rows)"]
    assert (grown.change, grown.form, grown.count, grown.among) == (
        "grown", "multiplicative", 72, 144,
    )  # fmt: skip
    assert (more.form, more.count, more.among, more.entry) == ("additive", 24, 48, 0)
    assert grown.positions is None and grown.values is None
    together = rows[inspect.TOGETHER]
    small = [row for row in rows.values() if row.values is None]
    assert together.count == sum(row.count for row in small) > 0
    names = [row.name for row in inspect.costs(data)[1:-1] if "(new rows)" not in row.name]
    assert names == [entry.name for entry in wire.decode(data).entries]


def test_the_entry_is_name_shape_and_counts():
    """By FORMAT.md, counted by hand."""
    old, new = {"layer.weight": torch.ones(3, 5)}, {"layer.weight": torch.full((3, 5), 2.0)}
    row = by_name(budget.make(old, new, None, kind=Kind.INT8).data)["layer.weight"]
    name, change, shape, segment = 1 + 1 + 12, 1, 1 + 2, 1 + 1 + 4
    assert row.entry == name + change + shape + segment


def exact(segments: list[Segment], kind: Kind) -> float:
    """In bytes, by whole numbers."""
    bits, codes = 0.0, Counter()
    for segment in segments:
        stored = segment.codes.tolist()
        if segment.form == Form.SPARSE:
            stored = [code for code in stored if code]
            bits += math.log2(math.comb(segment.values, len(stored)))
        codes.update(stored)
    number = sum(codes.values())
    if kind == Kind.FP32:
        return (bits + 32 * number) / 8
    bits += sum(n * math.log2(number / n) for n in codes.values())
    alphabet = 255 if kind == Kind.INT8 else 2**16
    bits += math.log2(math.comb(alphabet, len(codes)))
    return (bits + math.log2(math.comb(number - 1, len(codes) - 1))) / 8


@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
def test_the_bound_by_whole_numbers(method, kind, share):
    old, new = layers()
    data = budget.make(old, new, None, method, kind, share).data
    diff, rows = wire.decode(data), by_name(data)
    segments = {entry.name: entry.segments[0] for entry in diff.entries}
    for name in ("a.weight", "b.weight"):
        assert rows[name].bound == pytest.approx(exact([segments[name]], kind), rel=1e-6)
    small = [segments[name] for name in segments if name.endswith("bias")]
    assert rows[inspect.TOGETHER].bound == pytest.approx(exact(small, kind), rel=1e-6)


def test_a_diff_of_nothing():
    old, _ = generations()
    data = budget.make(old, old).data
    header, together = inspect.costs(data)
    assert (header.size, together.size, together.bound) == (len(data), 0, 0)
    assert wire.result_of(data) == wire.base_of(data) == sha256(old)
