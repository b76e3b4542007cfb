"""Diffs of models in half precision: against arithmetic by hand, torch and a plain reader."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import reference_diff
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from safetensors.torch import save
from small_models import arrays, generations, half_generations

from fedspeech.diff import budget, floats, inspect, methods, wire
from fedspeech.diff.apply import apply, apply_file
from fedspeech.diff.contents import Change, Diff, Entry, Form, Segment
from fedspeech.diff.values import Kind, values
from fedspeech.errors import DiffError
from fedspeech.tensors import read, sha256, size

HASH = partial(methods.Hashed, seed=9)
WAYS = {"sparse": methods.Sparse, "hash": HASH}
HALVES = [torch.float16, torch.bfloat16]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def pair(dtype: torch.dtype, seed: int = 0) -> tuple[dict, dict]:
    """Two matrices and a vector in half precision, trained on a little."""
    draw = torch.Generator().manual_seed(seed)
    old = {
        "a.weight": 0.1 * torch.randn(200, 100, generator=draw),
        "b.weight": torch.randn(200, 100, generator=draw),
        "norm.running_var": 50 + 20 * torch.rand(200, generator=draw),
    }
    new = {n: t * (1 + 0.02 * torch.randn(t.shape, generator=draw)) for n, t in old.items()}
    return tuple({n: t.to(dtype) for n, t in model.items()} for model in (old, new))


# Rounding.


@pytest.mark.parametrize("dtype", HALVES)
@given(numbers=st.lists(FINITE, min_size=1))
def test_what_is_rounded_is_the_nearest_finite_value(dtype, numbers):
    """Against torch, and against whole fractions by bisection."""
    wide = torch.tensor([*numbers, 0.0, -0.0, 65519.0, 65520.0, -1e6, 3.4e38, 1e-8, 2049.0, 257.0])
    largest = torch.finfo(dtype).max
    wanted = wide.clamp(-largest, largest).to(dtype)
    name = str(dtype).removeprefix("torch.")
    found = floats.narrowed(wide.numpy(), name).view(np.uint16)
    assert_array_equal(found, wanted.view(torch.uint16).numpy())
    plain_dtype = {"float16": np.dtype(np.float16), "bfloat16": reference_diff.BFLOAT16}[name]
    plain = [reference_diff.rounded(float(one), plain_dtype) for one in wide]
    assert found.tolist() == plain
    back = floats.widened(found.view(np.uint8), name)
    assert_array_equal(back.view(np.uint32), wanted.float().view(torch.uint32).numpy())


@pytest.mark.parametrize("dtype", HALVES)
def test_every_pattern_comes_back(dtype):
    name = str(dtype).removeprefix("torch.")
    patterns = np.arange(2**16, dtype=np.uint16)
    wide = floats.widened(patterns.view(np.uint8), name)
    finite = np.isfinite(wide)
    assert finite.sum() == 2 * (0x7C00 if name == "float16" else 0x7F80)
    again = floats.narrowed(wide[finite], name).view(np.uint16)
    assert_array_equal(again, patterns[finite])


@pytest.mark.parametrize(("dtype", "above"), [("float16", 100.0), ("bfloat16", 1e36)])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_goes_beyond_a_dtype_is_its_largest_value(dtype, above, sign):
    half = getattr(torch, dtype)
    largest = sign * torch.finfo(half).max
    old = {"w": torch.tensor([largest, largest / 2], dtype=half)}
    code = np.array([sign * above], np.float32).view(np.uint32)
    code = (code << 1) | (code >> 31)
    segment = Segment(2, Form.SPARSE, 1.0, code, np.array([0], np.uint32))
    entry = Entry("w", Change.CHANGED, (2,), (segment,), dtype=dtype)
    data = wire.encode(Diff(sha256(old), sha256(old), Kind.FP32, (entry,)))
    assert torch.equal(apply(old, data)["w"], old["w"])
    plain = reference_diff.apply(arrays(old), data)
    assert plain["w"].tobytes() == arrays(old)["w"].tobytes()


# What is given.


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("method", WAYS)
def test_a_plain_reader_gets_the_same_model_to_the_bit(method, share, kind, tmp_path):
    old, new = half_generations()
    made = budget.make(old, new, None, WAYS[method], kind, share)
    assert {n: (t.dtype, t.shape) for n, t in made.result.items()} == {
        n: (t.dtype, t.shape) for n, t in sorted(new.items())
    }
    assert sha256(apply(old, made.data)) == sha256(made.result)
    plain = reference_diff.apply(arrays(old), made.data)
    for name, array in arrays(made.result).items():
        assert array.tobytes() == plain[name].tobytes()
    (tmp_path / "old").write_bytes(save(old))
    apply_file(tmp_path / "old", made.data, tmp_path / "new")
    assert sha256(read(tmp_path / "new")) == sha256(made.result)


@pytest.mark.parametrize("dtype", HALVES)
def test_sparse_is_torchs_sum_in_float32_rounded(dtype):
    old, new = pair(dtype)
    made = budget.make(old, new, size(new) // 10)
    diff = wire.decode(made.data)
    assert len(made.data) <= size(new) // 10 and {e.dtype for e in diff.entries} <= {
        str(dtype).removeprefix("torch.")
    }
    for entry in diff.entries:
        (segment,) = entry.segments
        change = torch.zeros(segment.values)
        places = np.cumsum(segment.gaps + 1) - 1 if len(segment.gaps) else np.arange(segment.values)
        change[places] = torch.from_numpy(values(segment.codes, diff.kind, segment.scale))
        wanted = (old[entry.name].flatten().float() + change).to(dtype)
        assert torch.equal(made.result[entry.name].flatten(), wanted)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("additive", [False, True])
def test_hash_is_torchs_sum_in_float32_rounded(dtype, additive):
    old, new = pair(dtype)
    way = partial(HASH, additive=additive)
    made = budget.make(old, new, None, way, Kind.INT8, 0.1)
    diff = wire.decode(made.data)
    for name in ("a.weight", "b.weight"):
        (segment,) = next(e for e in diff.entries if e.name == name).segments
        array = values(segment.codes, diff.kind, segment.scale)
        wanted = []
        for i, w in enumerate(old[name].flatten().float()[:300]):
            cells = [reference_diff.cell(9, name, 0, k, i, len(array)) for k in range(3)]
            first, second, third = (torch.tensor(array[cell]) for cell in cells)
            total = first + second + third
            wanted.append(w + (total if additive else total * w.abs()))
        assert torch.equal(made.result[name].flatten()[:300], torch.stack(wanted).to(dtype))


def test_what_becomes_of_each_tensor():
    old, new = half_generations()
    diff = wire.decode(budget.make(old, new, None, HASH, share=0.3).data)
    found = {
        entry.name: (entry.dtype, entry.change, *(s.form for s in entry.segments))
        for entry in diff.entries
    }
    sparse, multiplied, added = Form.SPARSE, Form.MULTIPLICATIVE, Form.ADDITIVE
    assert found == {
        "a.weight": ("float32", Change.CHANGED, multiplied),
        "dense.bias": ("float16", Change.CHANGED, sparse),
        "dense.weight": ("float16", Change.CHANGED, multiplied),
        "fresh.scalar": ("bfloat16", Change.FRESH, sparse),
        "fresh.weight": ("bfloat16", Change.FRESH, added),
        "gone": ("float32", Change.REMOVED),
        "norm.count": ("int64", Change.VERBATIM),
        "norm.running_var": ("bfloat16", Change.CHANGED, sparse),
        "output.bias": ("bfloat16", Change.GROWN, sparse, sparse),
        "output.weight": ("bfloat16", Change.GROWN, multiplied, added),
        "z.bias": ("float32", Change.CHANGED, sparse),
        "zero.weight": ("float16", Change.CHANGED, added),
    }


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("ratio", [4, 40])
def test_a_budget_is_kept_and_what_is_lost_is_that_of_the_rounded_model(dtype, method, ratio):
    old, new = pair(dtype, 1)
    most = size(new) // ratio
    made = budget.make(old, new, most, WAYS[method])
    assert 0.95 * most < len(made.data) <= most
    left = total = 0.0
    for name, tensor in new.items():
        after, before = tensor.double(), old[name].double()
        unit = after.square().mean()
        left += ((made.result[name].double() - after).square().sum() / unit).item()
        total += ((before - after).square().sum() / unit).item()
    assert made.lost == pytest.approx(left / total, rel=1e-5) and made.lost < 1


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", WAYS)
def test_of_one_value_that_changes_only_that_is_sent(dtype, method):
    old = pair(dtype)[0]
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["norm.running_var"][7] += 8
    for most in (None, size(new) // 10):
        made = budget.make(old, new, most, WAYS[method])
        assert len(made.data) < 160 and sha256(made.result) == sha256(new) and made.lost == 0


def test_of_changes_that_are_as_large_as_many_fit_as_there_is_room_for():
    """All values move by one step of the dtype."""
    old = {"w": torch.ones(100, 200, dtype=torch.bfloat16)}
    new = {"w": old["w"] + 2**-7}
    diffs = [wire.decode(budget.make(old, new, None, share=share).data) for share in (0.1, 0.3)]
    assert [len(d.entries[0].segments[0].codes) for d in diffs] == [2000, 6000]


# To the bit.


@pytest.mark.parametrize("dtype", HALVES)
def test_without_a_budget_the_new_model_is_given_to_the_bit(dtype):
    """What mostly changes goes as it is: it takes no more than the model itself."""
    old, new = pair(dtype)
    new["a.weight"][30:] = old["a.weight"][30:]
    made = budget.make(old, new)
    assert sha256(made.result) == sha256(new) and made.lost == 0
    changes = {entry.name: entry.change for entry in wire.decode(made.data).entries}
    assert changes == {
        "a.weight": Change.CHANGED,
        "b.weight": Change.VERBATIM,
        "norm.running_var": Change.VERBATIM,
    }
    assert len(made.data) < 0.75 * size(new)


@pytest.mark.parametrize("dtype", HALVES)
def test_an_exact_diff_is_exact_after_rounding(dtype):
    """Even where the old value is so large that what is added to it says nothing of the new one."""
    old = {"w": torch.zeros(9, dtype=dtype), "x": torch.ones(4)}
    new = {name: tensor.clone() for name, tensor in old.items()}
    old["w"][:2] = torch.tensor([60000.0, 1.0])
    new["w"][:2] = torch.tensor([1e-7, -0.0])
    assert torch.equal(budget.make(old, new).result["w"], new["w"]) is False
    data = budget.exact(old, new)
    assert sha256(apply(old, data)) == sha256(new)
    old, new = half_generations()
    del new["a.weight"], new["z.bias"]  # of float32 not everything can be had
    assert sha256(apply(old, budget.exact(old, new))) == sha256(new)


# The container.


def test_only_what_needs_it_has_the_new_version():
    """Devices with the program before take diffs between float32 models as they did."""
    version = lambda data: int.from_bytes(data[8:10], "little")  # noqa: E731
    # Without the bias that repeats another.
    old, new = ({n: t for n, t in model.items() if n != "z.bias"} for model in half_generations())
    halves = budget.make(old, new, share=0.3).data
    assert version(halves) == 3
    assert version(budget.make(*generations()).data) == 2
    whole = budget.make(*pair(torch.float16)).data
    assert version(whole) == 2 and {e.change for e in wire.decode(whole).entries} == {
        Change.VERBATIM
    }


def test_rows_say_the_dtype_and_are_all_bytes():
    old, new = half_generations()
    data = budget.make(old, new, 900).data
    rows = inspect.costs(data)
    assert sum(row.size for row in rows) == len(data)
    dtypes = {row.name.removesuffix(" (new rows)"): row.dtype for row in rows[1:-1]}
    for entry in wire.decode(data).entries:
        told = "" if entry.change == Change.REMOVED else str(new[entry.name].dtype)[6:]
        assert dtypes.pop(entry.name) == told
    assert not dtypes


# What is refused.


@pytest.mark.parametrize("most", [None, 300])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_told(value, most):
    old = {"w": torch.ones(400, dtype=torch.float16)}
    new = {"w": torch.ones(400, dtype=torch.float16)}
    new["w"][2] = value
    message = "the {} model: 1 of 400 values of tensor w are NaN or infinite"
    with pytest.raises(DiffError, match=message.format("new")):
        budget.make(old, new, most)
    with pytest.raises(DiffError, match=message.format("old")):
        budget.make(new, old, most)


def test_a_model_of_another_dtype_is_told():
    old = {"w": torch.ones(4, 5, dtype=torch.float16)}
    made = budget.make(old, {"w": 2 * old["w"]}, share=1.0)
    diff = wire.decode(made.data)
    entries = tuple(replace(entry, dtype="bfloat16") for entry in diff.entries)
    told = r"changes tensor 'w' of bfloat16 \(4, 5\); the model has float16 \(4, 5\)"
    with pytest.raises(DiffError, match=told):
        apply(old, wire.encode(replace(diff, entries=entries)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("before", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tensor_that_changes_its_dtype_starts_from_zero(before, dtype):
    old, new = {"w": torch.ones(300, dtype=before)}, {"w": torch.ones(300, dtype=dtype)}
    new["w"][:100] = 1.5
    made = budget.make(old, new, share=1.0)
    (entry,) = wire.decode(made.data).entries
    assert entry.change == (Change.CHANGED if before == dtype else Change.FRESH)
    assert sha256(apply(old, made.data)) == sha256(new)
