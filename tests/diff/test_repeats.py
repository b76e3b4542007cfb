"""What changes as something before it is sent as the difference, and comes back as it was."""

import numpy as np
import pytest
import reference_diff
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_diff import fixed_checksum
from small_models import arrays, twin_generations

from fedspeech.diff import budget, repeats, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.contents import Change, Diff, Entry, Form, Segment
from fedspeech.diff.values import BITS, Kind
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256

BASE, RESULT = "01" * 32, "ab" * 32


def diff_of(kind: Kind, *rows: list[int]) -> Diff:
    """One-dimensional tensors with these codes for all of their values."""
    entries = [
        Entry(
            f"t{i:02}", Change.CHANGED, (len(r),), (Segment(len(r), codes=np.array(r, np.uint32)),)
        )
        for i, r in enumerate(rows)
    ]
    return Diff(BASE, RESULT, kind, tuple(entries))


def forms(diff: Diff) -> list[int]:
    return [segment.form for entry in diff.entries for segment in entry.segments]


@st.composite
def twins(draw) -> Diff:
    """Vectors that are near each other, or far, or of another length."""
    kind = draw(st.sampled_from(Kind))
    most = 254 if kind == Kind.INT8 else 2 ** BITS[kind] - 1
    first = draw(st.lists(st.integers(0, most), min_size=1, max_size=9))
    rows = [first]
    for _ in range(draw(st.integers(1, 4))):
        near = [st.integers(max(0, code - 2), min(most, code + 2)) for code in rows[-1]]
        far = st.lists(st.integers(0, most), min_size=1, max_size=9)
        rows.append(list(draw(st.one_of(st.tuples(*near), far))))
    return diff_of(kind, *rows)


@settings(max_examples=300)
@given(twins())
def test_what_is_encoded_comes_back_to_us_and_to_a_plain_reader(diff):
    data = wire.encode(diff)
    plain = reference_diff.read(data)["entries"]
    for entry, ours, theirs in zip(diff.entries, wire.decode(data).entries, plain, strict=True):
        wanted = entry.segments[0].codes.tolist()
        assert ours.segments[0].form == Form.SPARSE
        assert ours.segments[0].codes.tolist() == wanted == theirs["segments"][0]["codes"]


def test_differences_by_hand():
    """Modulo 2**16, with the sign last: 0, 2 is 4, -1 is 1, and -2, over the edge, 3."""
    diff = diff_of(Kind.FP16, [40000, 300, 70, 1], [40000, 302, 69, 65535])
    folded = repeats.folded(diff)
    assert forms(folded) == [Form.SPARSE, Form.REPEATED]
    assert folded.entries[1].segments[0].codes.tolist() == [0, 4, 1, 3]


def test_the_last_of_as_many_values_is_repeated_and_only_what_is_near():
    a, b, near_b = [900, 1000, 1100], [7, 40000, 3], [7, 40001, 3]
    diff = diff_of(Kind.FP16, a, b, [5, 5], near_b, near_b, a)
    assert forms(repeats.folded(diff)) == [0, 0, 0, 3, 3, 0]


def test_what_is_large_is_not_repeated():
    for values, form in ((2**16, Form.REPEATED), (2**16 + 1, Form.SPARSE)):
        codes = np.full(values, 1234, np.uint32)
        rows = [Entry(n, Change.CHANGED, (values,), (Segment(values, codes=codes),)) for n in "ab"]
        diff = Diff(BASE, RESULT, Kind.FP16, tuple(rows))
        assert forms(repeats.folded(diff)) == [Form.SPARSE, form]


def test_the_second_bias_of_an_lstm_takes_few_bytes():
    """Two bytes for each of its 128 values it would be without; a plain reader gets the same."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(8, 32)
    old = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    step = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(20):
        step.zero_grad()
        module(torch.randn(5, 3, 8))[0].square().mean().backward()
        step.step()
    new = dict(module.state_dict())
    made = budget.make(old, new, kind=Kind.FP16, share=0.05)
    one = {name: tensor for name, tensor in new.items() if name != "bias_ih_l0"}
    without = budget.make({n: old[n] for n in one}, one, kind=Kind.FP16, share=0.05)
    assert len(made.data) - len(without.data) < 128 / 2
    plain = reference_diff.apply(arrays(old), made.data)
    assert sha256(apply(old, made.data)) == sha256(made.result)
    assert all(np.array_equal(plain[n], t.numpy()) for n, t in made.result.items())


def test_only_what_repeats_has_the_new_version():
    version = lambda data: int.from_bytes(data[8:10], "little")  # noqa: E731
    assert version(wire.encode(diff_of(Kind.FP16, [500, 600], [500, 600]))) == 4
    assert version(wire.encode(diff_of(Kind.FP16, [500, 600], [9, 1]))) == 2
    old, new = twin_generations()
    assert version(budget.make(old, new).data) == 4


def test_who_repeats_nothing_is_told():
    data = wire.encode(diff_of(Kind.FP16, [500, 600], [500, 600]))
    place = data.index(b"\x01\x02\x02\x00")  # one dimension of 2, two codes, sparse
    bad = data[: place + 3] + b"\x03" + data[place + 4 :]
    with pytest.raises(DiffError, match="damaged: 2 values that repeat none before them"):
        wire.decode(fixed_checksum(bad))
    older = data[:8] + b"\x03" + data[9:]
    with pytest.raises(DiffError, match="format version 3, and it says what is of version 4"):
        wire.decode(fixed_checksum(older))
