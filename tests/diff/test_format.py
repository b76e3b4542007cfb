"""The test vectors of FORMAT.md, read by our code and by a plain reader."""

import re
from pathlib import Path

import numpy as np
import pytest
import reference_diff
import torch
from numpy.testing import assert_array_equal
from small_models import arrays

from fedspeech.diff import budget, entropy, hashed, inspect, methods, repeats, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.contents import Form
from fedspeech.diff.values import Kind
from fedspeech.tensors import sha256

TEXT = (Path(wire.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
VECTORS = TEXT.split("## Test vectors")[1]
STREAM, SPARSE, HASHED, HALF, REPEATED = (
    bytes.fromhex(block) for block in re.findall(r"(?:^    (?:[0-9a-f]{2} ?)+$\n?)+", VECTORS, re.M)
)
BASE = {
    "b": torch.zeros(2),
    "n": torch.tensor(3),
    "w": torch.tensor([[1, -2, 3], [-0.5, 0.25, 8]]),
}
NEW = {
    "b": torch.tensor([0.5, 0]),
    "n": torch.tensor(4),
    "w": torch.tensor([[1, -2.5, 3], [-0.5, 0.25, 9]]),
}
HALF_BASE = {
    "b": torch.zeros(2),
    "h": BASE["w"].to(torch.float16),
    "k": torch.tensor([258, 1, -3], dtype=torch.bfloat16),
}
TWIN_BASE = {"b": torch.zeros(3), "c": torch.tensor([1.0, -2, 3])}
TWIN_NEW = {"b": torch.tensor([0.5, -0.25, 8]), "c": torch.tensor([1.5, -2.250244140625, 11])}
HALF_NEW = {
    "b": NEW["b"],
    "h": NEW["w"].to(torch.float16),
    "k": torch.tensor([260, 1, -4, 0.75], dtype=torch.bfloat16),
}


def test_the_hash():
    lines = re.findall(r"k = (\d) +a = (\w{8}) +b = (\w{8}) +([\d ]+)", VECTORS)
    assert len(lines) == 3
    for number, factor, offset, cells in lines:
        key = hashed.keys(1, "a.weight", 0, 3)[int(number)]
        assert key == (int(factor, 16), int(offset, 16))
        wanted = [int(cell) for cell in cells.split()]
        assert hashed.cells(key, 0, 8, 1000).tolist() == wanted
        plain = [reference_diff.cell(1, "a.weight", 0, int(number), i, 1000) for i in range(8)]
        assert plain == wanted


def test_the_stream():
    numbers = [0, 1, 2, 3, 0, 0, 300]
    assert entropy.encode([np.array(numbers, np.uint32)]) == STREAM
    assert entropy.decode(STREAM, [7])[0].tolist() == numbers
    assert reference_diff.streams(reference_diff.Bytes(STREAM), [7]) == [numbers]
    kept, frequencies = reference_diff.table(reference_diff.Bytes(STREAM))
    assert (kept, frequencies) == (0, {0: 109, 1: 37, 2: 73, 9: 37})


def test_the_bases():
    assert all(sha256(base) in VECTORS for base in (BASE, HALF_BASE, TWIN_BASE))


@pytest.mark.parametrize("data", [SPARSE, HASHED], ids=["sparse", "hashed"])
def test_both_diffs_apply_to_the_base(data):
    result = apply(BASE, data)
    plain = reference_diff.apply({name: t.numpy() for name, t in BASE.items()}, data)
    for name, tensor in result.items():
        assert_array_equal(tensor.numpy(), plain[name])


def test_the_sparse_diff_is_what_the_text_says():
    diff = wire.decode(SPARSE)
    segment = diff.entries[2].segments[0]
    assert diff.kind == Kind.INT8
    assert [s.gaps.tolist() for s in (diff.entries[0].segments[0], segment)] == [[0], [1, 3]]
    assert segment.codes.tolist() == [127, 254]
    assert segment.scale == np.array(0x3C010204, np.uint32).view(np.float32)
    wanted = NEW["w"].clone()
    wanted[0, 1] = float(np.float32(-2) + np.float32(-64) * np.float32(segment.scale))
    assert torch.equal(apply(BASE, SPARSE)["w"], wanted)
    assert budget.make(BASE, NEW, kind=Kind.INT8).data == SPARSE


def test_the_hashed_diff_is_what_the_text_says():
    diff = wire.decode(HASHED)
    segment = diff.entries[2].segments[0]
    assert (diff.kind, diff.hashes, diff.seed) == (Kind.FP16, 2, 1)
    assert (segment.form, len(segment.codes)) == (Form.MULTIPLICATIVE, 2)
    made = budget.make(BASE, NEW, None, lambda c: methods.Hashed(c, 1, 2), Kind.FP16, 0.34)
    assert made.data == HASHED


def test_the_diff_in_half_precision_is_what_the_text_says():
    wanted = {**HALF_NEW, "h": HALF_NEW["h"].clone()}
    wanted["h"][0, 1] = -2.50390625
    assert wanted["h"].view(torch.uint16)[0, 1] == 0xC102
    assert sha256(apply(HALF_BASE, HALF)) == sha256(wanted)
    plain = reference_diff.apply(arrays(HALF_BASE), HALF)
    assert {n: a.tobytes() for n, a in plain.items()} == {
        n: a.tobytes() for n, a in arrays(wanted).items()
    }
    assert budget.make(HALF_BASE, HALF_NEW, kind=Kind.INT8).data == HALF
    entries = [(entry.name, entry.dtype) for entry in wire.decode(HALF).entries]
    assert entries == [("b", "float32"), ("h", "float16"), ("k", "bfloat16")]


def test_the_diff_that_repeats_is_what_the_text_says():
    plain = reference_diff.apply(arrays(TWIN_BASE), REPEATED)
    for name, tensor in TWIN_NEW.items():
        assert torch.equal(apply(TWIN_BASE, REPEATED)[name], tensor)
        assert_array_equal(plain[name], tensor.numpy())
    segments = [entry.segments[0] for entry in repeats.folded(wire.decode(REPEATED)).entries]
    assert [segment.codes.tolist() for segment in segments] == [[28672, 26625, 36864], [0, 4, 0]]
    assert [segment.form for segment in segments] == [Form.SPARSE, Form.REPEATED]
    assert budget.make(TWIN_BASE, TWIN_NEW, kind=Kind.FP16).data == REPEATED
    rows = inspect.costs(REPEATED)
    assert [row.form for row in rows[1:3]] == ["sparse", "repeated"]
    assert sum(row.size for row in rows) == len(REPEATED)
