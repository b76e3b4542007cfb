"""A diff made, applied here and by a plain reader, to the bit; and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_diff
import torch
from safetensors.torch import save
from small_models import arrays, generations

from fedspeech.diff import budget, hashed, methods, wire
from fedspeech.diff.apply import apply, apply_file, update
from fedspeech.diff.contents import Change, Form
from fedspeech.diff.values import Kind
from fedspeech.errors import DiffError, DiskError, ModelError
from fedspeech.tensors import read, sha256, write

METHODS = {
    "sparse": methods.Sparse,
    "hash": lambda comparison: methods.Hashed(comparison, seed=2**64 - 5),
    "hash-additive": lambda comparison: methods.Hashed(comparison, seed=1, hashes=2, additive=True),
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("share", [None, 0.2])
@pytest.mark.parametrize("method", METHODS)
def test_a_plain_reader_gets_the_same_model_to_the_bit(method, share, kind):
    old, new = generations()
    made = budget.make(old, new, None, METHODS[method], kind, share)
    assert sha256(apply(old, made.data)) == sha256(made.result)
    plain = reference_diff.apply(arrays(old), made.data)
    assert list(made.result) == sorted(new) == sorted(plain)
    for name, array in plain.items():
        assert array.tobytes() == made.result[name].numpy().tobytes()
        assert array.shape == tuple(new[name].shape)


def test_everything_in_fp32_is_the_new_model_but_for_the_last_bit():
    old, new = generations()
    result = budget.make(old, new).result
    for name, tensor in new.items():
        assert torch.allclose(result[name], tensor, rtol=2e-7, atol=1e-9)
    assert torch.equal(result["norm.count"], new["norm.count"])
    # What starts from zero arrives as it is.
    for name in ("fresh.weight", "fresh.scalar", "zero.weight", "dense.bias"):
        assert torch.equal(result[name], new[name])


def test_a_learned_mask_gives_its_model():
    """Few values that move a little: all but a few of their differences are exact in float32."""
    draw = torch.Generator().manual_seed(0)
    old = {"w": torch.randn(40, 50, generator=draw)}
    mask = torch.rand(40, 50, generator=draw) < 0.1
    new = {"w": old["w"] + mask * 0.01 * torch.randn(40, 50, generator=draw)}
    made = budget.make(old, new)
    assert torch.equal(made.result["w"] == old["w"], new["w"] == old["w"])
    assert (made.result["w"] != new["w"]).sum() < 5 and made.lost < 1e-15


def test_what_becomes_of_each_tensor():
    old, new = generations()
    diff = wire.decode(budget.make(old, new, None, METHODS["hash"], share=0.3).data)
    found = {
        entry.name: (entry.change, *(s.form for s in entry.segments)) for entry in diff.entries
    }
    assert found == {
        "dense.bias": (Change.CHANGED, Form.SPARSE),
        "dense.weight": (Change.CHANGED, Form.MULTIPLICATIVE),
        "fresh.scalar": (Change.FRESH, Form.SPARSE),
        "fresh.weight": (Change.FRESH, Form.ADDITIVE),
        "gone": (Change.REMOVED,),
        "norm.count": (Change.VERBATIM,),
        "norm.running_var": (Change.CHANGED, Form.SPARSE),
        "output.bias": (Change.GROWN, Form.SPARSE, Form.SPARSE),
        "output.weight": (Change.GROWN, Form.MULTIPLICATIVE, Form.ADDITIVE),
        "zero.weight": (Change.CHANGED, Form.ADDITIVE),
    }
    assert (diff.hashes, diff.base) == (3, sha256(old))


def test_new_rows_hash_on_their_own():
    """Part 1 has other cells than part 0, so that both can have the same name."""
    assert not set(hashed.keys(0, "a", 0, 3)) & set(hashed.keys(0, "a", 1, 3))


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in wire.DTYPES])
def test_what_is_not_float32_is_sent_as_it_is(dtype):
    old = {"a": torch.zeros(3, 2).to(dtype), "b": torch.zeros(0, 2).to(dtype)}
    new = {
        "a": torch.tensor([[0.0, 1], [1, 1], [0, 1]]).to(dtype),
        "b": torch.zeros(2, 0).to(dtype),
    }
    made = budget.make(old, new)
    assert sha256(apply(old, made.data)) == sha256(new) == sha256(made.result)
    assert wire.ITEM_SIZES[wire.DTYPES.index(str(dtype)[6:])] == new["a"].element_size()


@pytest.mark.parametrize(
    "old",
    [
        {},
        {"w": torch.ones(3, 4, dtype=torch.float64)},
        {"w": torch.ones(4, 4)},
        {"w": torch.ones(3, 5)},
        {"w": torch.ones(12)},
        {"w": torch.tensor(1.0)},
    ],
    ids=["none", "float64", "more rows", "more columns", "flat", "scalar"],
)
def test_a_tensor_of_another_kind_starts_from_zero(old):
    new = {"w": torch.arange(12.0).reshape(3, 4)}
    made = budget.make(old, new)
    (entry,) = wire.decode(made.data).entries
    assert entry.change == Change.FRESH
    assert sha256(apply(old, made.data)) == sha256(new)


def test_rows_grow_from_none():
    old, new = {"w": torch.empty(0, 4)}, {"w": torch.ones(2, 4)}
    made = budget.make(old, new)
    assert wire.decode(made.data).entries[0].change == Change.GROWN
    assert sha256(apply(old, made.data)) == sha256(new)


def test_equal_models_have_a_diff_without_entries():
    old, _ = generations()
    made = budget.make(old, old)
    assert len(made.data) == 102 and made.lost == 0
    assert sha256(apply(old, made.data)) == sha256(old)


def test_the_model_that_is_given_stays_as_it_is():
    old, new = generations()
    before = sha256(old)
    apply(old, budget.make(old, new).data)
    assert sha256(old) == before


def test_tensors_stream_in_the_order_of_names():
    """One at a time, with new ones before, between and after those of the base."""
    old = {"b": torch.ones(2), "d": torch.ones(2)}
    new = {name: torch.full((2,), 2.0) for name in "abcde"}
    diff = wire.decode(budget.make(old, new).data)
    assert [name for name, _ in update(iter(sorted(old.items())), diff)] == list("abcde")


# From file to file.


@pytest.fixture
def files(tmp_path):
    """The old model's file, where the new one will be, and the diff between them."""
    old, new = generations()
    path = tmp_path / "old"
    path.write_bytes(save(old, {"format": "pt"}))
    return path, tmp_path / "new", budget.make(old, new, None, METHODS["hash"]).data


def test_a_file_is_that_of_the_whole_model(files):
    old, new, data = files
    assert apply_file(old, data, new) == wire.result_of(data) == sha256(read(new))
    # What else the old file says of itself stays: some libraries read no model without it.
    assert new.read_bytes() == save(apply(read(old), data), {"format": "pt"})


def test_the_new_file_may_be_the_old_one(files):
    old, _, data = files
    assert sha256(read(old)) == wire.base_of(data)
    apply_file(old, data, old)
    assert sha256(read(old)) == wire.result_of(data)
    with pytest.raises(DiffError, match="the diff is for the model"):
        apply_file(old, data, old)


@pytest.mark.parametrize("wrong", ["base", "result"])
def test_where_a_hash_is_wrong_nothing_is_written(files, wrong):
    old, new, data = files
    new.write_text("what was there")
    diff = replace(wire.decode(data), **{wrong: "00" * 32})
    with pytest.raises(DiffError, match="00" * 32):
        apply_file(old, wire.encode(diff), new)
    assert new.read_text() == "what was there"
    assert sorted(path.name for path in old.parent.iterdir()) == ["new", "old"]


def test_a_base_that_cannot_be_read_is_told(files):
    old, new, data = files
    old.write_bytes(old.read_bytes()[:-5])
    with pytest.raises(ModelError, match="old: not a readable model"):
        apply_file(old, data, new)


def test_a_disk_that_is_full_keeps_the_old_file(small_disk):
    folder, resize = small_disk
    old, new = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    path, data = folder / "model", budget.make(old, new).data
    resize(600_000)
    write(path, old)
    with pytest.raises(DiskError, match=f"cannot write {path}: .*No space left"):
        apply_file(path, data, path)
    assert [left.name for left in folder.iterdir()] == ["model"]
    assert sha256(read(path)) == sha256(old)
    resize(1_000_000)
    apply_file(path, data, path)
    assert sha256(read(path)) == sha256(new)


# What is refused.


def test_another_base_is_told_with_both_hashes():
    old, new = generations()
    data = budget.make(old, new).data
    with pytest.raises(DiffError) as told:
        apply(new, data)
    assert (
        str(told.value) == f"the diff is for the model {sha256(old)}, and this one is {sha256(new)}"
    )


def with_entries(data: bytes, change) -> bytes:
    diff = wire.decode(data)
    return wire.encode(replace(diff, entries=tuple(change(entry) for entry in diff.entries)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "z"}, "the diff changes tensor 'z', which the model lacks"),
        (
            {"name": "z", "change": Change.REMOVED, "segments": ()},
            "tensor 'z', which the model lacks",
        ),
        ({"shape": (5, 4)}, r"'w' of float32 \(5, 4\); the model has float32 \(4, 5\)"),
        ({"shape": (2, 10)}, r"'w' of float32 \(2, 10\); the model has float32 \(4, 5\)"),
    ],
)
def test_a_model_that_does_not_fit_is_told(change, told):
    """Such a diff has the right base hash all the same: somebody made it so."""
    old = {"w": torch.ones(4, 5)}
    made = budget.make(old, {"w": torch.full((4, 5), 2.0)})
    with pytest.raises(DiffError, match=told):
        apply(old, with_entries(made.data, lambda entry: replace(entry, **change)))


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ({"w": torch.ones(4, 5), "x": torch.zeros(2000)}, "brings tensor 'x', which the model"),
        ({"w": torch.ones(6, 5)}, r"makes tensor 'w' one of float32 \(6, 5\); the model has"),
        ({"w": torch.ones(4, 5).half()}, r"makes tensor 'w' one of float16 \(4, 5\); the model"),
        ({}, "takes tensor 'w' from the model"),
    ],
)
def test_where_models_have_to_be_alike_no_other_tensors_are_made(new, told, monkeypatch):
    """A diff that is right in all else is refused before it is filled."""
    old = {"w": torch.ones(4, 5)}
    data = budget.make(old, new).data
    assert sha256(apply(old, data)) == sha256(new)
    monkeypatch.setattr(wire, "filled", None)
    with pytest.raises(DiffError, match=told):
        apply(old, data, alike=True)


def test_a_result_that_is_not_the_one_named_is_told():
    old, new = generations()
    diff = replace(wire.decode(budget.make(old, new).data), result="00" * 32)
    with pytest.raises(DiffError, match=f"should have given the model {'00' * 32}, but gave "):
        apply(old, wire.encode(diff))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_told(value):
    old, new = {"a": torch.ones(3), "w": torch.ones(4)}, {"a": torch.ones(3), "w": torch.ones(4)}
    new["w"][2] = value
    message = "the new model: 1 of 4 values of tensor w are NaN or infinite"
    with pytest.raises(DiffError, match=message):
        budget.make(old, new)
    with pytest.raises(DiffError, match="the old model: 1 of 4 values of tensor w"):
        budget.make(new, old)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_what_is_sent_as_it_is_is_looked_at_as_well(dtype, value):
    old, new = torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)
    new[[1, 2]] = torch.tensor(value, dtype=torch.float32).to(dtype)
    message = "the new model: 2 of 5 values of tensor w are NaN or infinite"
    for before in ({"w": old}, {}):
        with pytest.raises(DiffError, match=message):
            budget.make(before, {"w": new})
    assert torch.equal(budget.make({"w": new}, {"w": old}).result["w"], old)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2]
)
def test_a_nan_that_stays_is_told_and_an_infinity_that_stays_may_be_a_mask(dtype):
    same = torch.tensor([1.0, torch.nan, 1.0]).to(dtype)
    message = "the new model: 1 of 3 values of tensor w are NaN$"
    with pytest.raises(DiffError, match=message):
        budget.make({"w": same, "v": torch.zeros(2)}, {"w": same.clone(), "v": torch.ones(2)})
    mask = torch.tensor([0.0, -torch.inf]).to(dtype)
    made = budget.make({"w": mask, "v": torch.zeros(2)}, {"w": mask, "v": torch.ones(2)})
    assert torch.equal(made.result["w"].float(), mask.float())


def test_changes_beyond_float32_are_told():
    old, new = {"w": torch.full((2,), -3e38)}, {"w": torch.full((2,), 3e38)}
    with pytest.raises(DiffError, match="tensor w: the change is larger than a float32 holds"):
        budget.make(old, new)


def test_a_dtype_that_the_format_does_not_know_is_told():
    with pytest.raises(DiffError, match="tensor w is complex128; expected float32 or one of"):
        budget.make({}, {"w": torch.zeros(2, dtype=torch.complex128)})


def test_a_name_that_is_too_long_is_told():
    with pytest.raises(DiffError, match="a name of more than 1023 bytes"):
        budget.make({}, {"é" * 512: torch.zeros(2)})
