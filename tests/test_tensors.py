import hashlib
import os
import stat
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fedspeech.errors import DiskError, ModelError, RunError
from fedspeech.tensors import (
    add,
    check_like,
    distance,
    interpolate,
    read,
    sha256,
    state,
    stream,
    subtract,
    weighted_sum,
    write,
    write_whole,
)


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.bias": (5,), "a.weight": (5, 3, 2), "z": ()}
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


def same(left, right) -> bool:
    left, right = dict(left), dict(right)
    return list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)


def test_state_is_detached_sorted_and_a_copy():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    found = state(module)
    assert list(found) == sorted(module.state_dict())
    before = found["0.weight"].clone()
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(found["0.weight"], before)
    assert not found["0.weight"].requires_grad


# The generation's name.


def test_sha256_is_over_names_dtypes_shapes_and_little_endian_bytes():
    content = (
        b"a\0torch.int64\0()\0"
        + struct.pack("<q", -2)
        + b"b.weight\0torch.float32\0(2, 3)\0"
        + struct.pack("<6f", 0.0, 1.0, -2.5, 1e-30, 3.0, -0.0)
        + b"c\0torch.bfloat16\0(2,)\0"
        + bytes.fromhex("803f00c0")  # 1.0 and -2.0: the upper halves of their float32
        + b"d\0torch.bool\0(2,)\0"
        + b"\x01\x00"
        + b"e\0torch.float32\0(0, 4)\0"
    )
    tensors = {
        "e": torch.empty(0, 4),
        "d": torch.tensor([True, False]),
        "c": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "b.weight": torch.tensor([[0.0, 1.0, -2.5], [1e-30, 3.0, -0.0]]),
        "a": torch.tensor(-2),
    }
    assert sha256(tensors) == hashlib.sha256(content).hexdigest()


def test_sha256_sees_values_and_not_memory_layout():
    tensor = torch.arange(6.0).reshape(2, 3)
    strided = torch.arange(6.0).reshape(3, 2).T
    assert strided.shape == (2, 3) and not strided.is_contiguous()
    assert sha256({"a": strided}) == sha256({"a": strided.contiguous()})
    assert sha256({"a": tensor}) != sha256({"a": tensor.reshape(3, 2)})
    assert sha256({"a": tensor}) != sha256({"b": tensor})
    assert sha256({"a": torch.tensor(0.0)}) != sha256({"a": torch.tensor(-0.0)})


# Algebra.


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.2, -1.7, 2.5], [1 / 3] * 3])
def test_weighted_sum_is_that_of_numpy_in_float64(weights):
    models = [drawn(seed) for seed in range(len(weights))]
    found = dict(weighted_sum([model.items() for model in models], weights))
    for name, tensor in models[0].items():
        arrays = [model[name].numpy().astype(np.float64) for model in models]
        wanted = sum(w * array for w, array in zip(weights, arrays, strict=True))
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert_allclose(found[name].numpy(), wanted, rtol=1e-7, atol=1e-9)


def test_weighted_sum_accumulates_in_float64():
    parts = [{"a": torch.tensor([value])} for value in (1.0, 2.0**-24, 2.0**-24)]
    total = dict(weighted_sum([part.items() for part in parts], [1.0, 1.0, 1.0]))
    assert total["a"].item() == 1 + 2.0**-23  # in float32, 1 + 2**-24 is 1


def test_weighted_sum_takes_the_first_streams_dtype():
    left = {"a": torch.ones(2, dtype=torch.bfloat16)}
    right = {"a": torch.ones(2, dtype=torch.float64)}
    assert dict(weighted_sum([left.items(), right.items()], [1, 1]))["a"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"a": torch.zeros(2), "c": torch.zeros(3)}, r"b \(3,\) beside c \(3,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, r"b \(3,\) beside b \(4,\)"),
        ({"a": torch.zeros(2)}, r"b \(3,\) beside no tensor"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, r"no tensor .* beside c"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(other, told):
    model = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ModelError, match=f"models do not fit together: {told}"):
        list(weighted_sum([model.items(), other.items()], [0.5, 0.5]))
    with pytest.raises(ModelError, match="models do not fit together"):
        list(interpolate(model.items(), other.items(), 0.5))


@given(st.floats(0, 1))
def test_interpolate_is_that_of_numpy_in_float64(alpha):
    left, right = drawn(1), drawn(2)
    mixed = dict(interpolate(left.items(), right.items(), alpha))
    for name in left:
        wanted = alpha * left[name].double().numpy() + (1 - alpha) * right[name].double().numpy()
        assert_allclose(mixed[name].numpy(), wanted, rtol=1e-7, atol=1e-9)


def test_alpha_of_one_or_zero_gives_the_operands_to_the_bit():
    odd = torch.tensor([np.nan, np.inf, -0.0, 1e-45, 3e38])
    left, right = {"a": odd, "b": torch.ones(2)}, {"a": -odd, "b": torch.zeros(2)}
    assert sha256(dict(interpolate(left.items(), right.items(), 1))) == sha256(left)
    assert sha256(dict(interpolate(left.items(), right.items(), 1.0))) == sha256(left)
    assert sha256(dict(interpolate(left.items(), right.items(), 0.0))) == sha256(right)


def test_a_difference_added_again_gives_the_model():
    generic = {"a": torch.tensor([1.0, -2.0, 0.5, 1024.0])}
    personal = {"a": torch.tensor([1.5, -2.25, 0.5, 1024.5])}  # differences without rounding
    difference = dict(subtract(personal.items(), generic))
    assert difference["a"].tolist() == [0.5, -0.25, 0.0, 0.5]
    assert same(add(generic.items(), difference), personal)
    # With rounding, what was there is met to the last place of the larger number.
    left, right = drawn(3), drawn(4)
    back = dict(add(right.items(), dict(subtract(left.items(), right))))
    for name in left:
        assert_allclose(back[name].numpy(), left[name].numpy(), rtol=0, atol=5e-7)


def test_sums_and_differences_keep_the_dtype_of_the_first():
    single, double = drawn(1), drawn(2, torch.float64)
    for operation in (add, subtract):
        assert {t.dtype for _, t in operation(single.items(), double)} == {torch.float32}
        assert {t.dtype for _, t in operation(double.items(), single)} == {torch.float64}


def test_distance_is_euclidean_and_summed_in_float64():
    left, right = drawn(5), drawn(6)
    flat = [np.concatenate([m[n].double().numpy().ravel() for n in m]) for m in (left, right)]
    assert distance(left, right) == pytest.approx(np.linalg.norm(flat[0] - flat[1]), rel=1e-12)
    assert distance({"a": torch.tensor([0.0, 0.0])}, {"a": torch.tensor([3.0, 4.0])}) == 5.0
    # In float32 these differ by nothing: 1 + 2**-24 is 1.
    near = torch.tensor([1.0], dtype=torch.float64)
    assert distance({"a": near}, {"a": near + 2.0**-24}) == 2.0**-24


# What fits a model.


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"b": None}, "^tensor b is missing$"),
        ({"c": torch.zeros(1)}, "^tensor c is not in the model$"),
        ({"a": torch.zeros(3, 2)}, r"^tensor a has shape \(3, 2\), the model has \(2, 3\)$"),
        ({"b": torch.tensor([0.0, np.nan])}, "^tensor b has values that are NaN or infinite$"),
        ({"b": torch.tensor([-np.inf, 0.0])}, "^tensor b has values that are NaN or infinite$"),
    ],
)
def test_check_like_names_the_tensor(change, told):
    model = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    tensors = {n: t for n, t in {**model, **change}.items() if t is not None}
    if told is None:
        check_like(tensors, model)
    else:
        with pytest.raises(ModelError, match=told):
            check_like(tensors, model)


# Files.


def test_what_was_written_is_read_in_the_order_of_names(tmp_path):
    tensors = {
        "z": torch.randn(3, 4).T,  # not contiguous
        "a": torch.tensor(2.0),
        "m": torch.arange(5, dtype=torch.bfloat16),
    }
    path = tmp_path / "deep" / "er" / "model.safetensors"
    write(path, tensors)
    assert list(read(path)) == ["a", "m", "z"]
    assert sha256(read(path)) == sha256(tensors)
    assert [name for name, _ in stream(path, ["z", "a"])] == ["z", "a"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_change_to_what_was_read_does_not_reach_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {"a": torch.zeros(3)})
    read(path)["a"].add_(1)
    assert read(path)["a"].tolist() == [0, 0, 0]


def test_equal_tensors_give_equal_files(tmp_path):
    tensors = drawn(1)
    write(tmp_path / "a", tensors)
    write(tmp_path / "b", dict(reversed(tensors.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_told(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    write(path, drawn(1))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors: not a readable model"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"\x10" + b"\0" * 7 + b"{" * 16])
def test_what_is_no_model_is_told(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ModelError, match="x: not a readable model"):
        read(tmp_path / "x")


def test_a_missing_file_or_tensor_is_told(tmp_path):
    with pytest.raises(ModelError, match="nothing: not a readable model"):
        read(tmp_path / "nothing")
    with pytest.raises(ModelError, match="not a readable model"):
        read(tmp_path)
    write(tmp_path / "x", drawn(1))
    with pytest.raises(ModelError, match="x: cannot read tensor not"):
        list(stream(tmp_path / "x", ["not.there"]))


def test_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/model: "):
        write(tmp_path / "file" / "model", drawn(1))


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    """Also where nothing is there yet; what is unfinished is never beside the link."""
    (tmp_path / "there").mkdir()
    for name in ("old", "none"):
        (tmp_path / name).symlink_to(Path("there") / name)
    (tmp_path / "there" / "old").write_text("old")

    def save(part: Path) -> None:
        assert part.parent == tmp_path / "there"
        part.write_text("new")

    for name in ("old", "none"):
        write_whole(tmp_path / name, save)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "there" / name).read_text() == "new"
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"old", "none"}


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}
    for name in before:
        found = "a directory" if name == "folder" else "something that is no regular file"
        message = f"^cannot write {tmp_path / name}: {found} is there$"
        with pytest.raises(DiskError, match=message):
            write_whole(tmp_path / name, lambda part: part.write_text("new"))
    for name, was in before.items():
        now = (tmp_path / name).lstat()
        assert (now.st_ino, now.st_mode) == (was.st_ino, was.st_mode)


def test_why_nothing_is_written_is_told_without_the_parts_name(tmp_path):
    def fail(part: Path) -> None:
        raise OSError(28, "No space left on device", str(part))

    with pytest.raises(
        DiskError, match=f"^cannot write {tmp_path / 'x'}: No space left on device$"
    ):
        write_whole(tmp_path / "x", fail)


def test_a_failure_of_another_kind_leaves_no_part_file(tmp_path):
    def fail(part: Path) -> None:
        part.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys
from pathlib import Path
import torch
from fedspeech.errors import RunError
from fedspeech.tensors import write, write_whole

path = Path(sys.argv[1])
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for save in (
    lambda: write(path, {"a": torch.zeros(1_000_000)}),
    lambda: write_whole(path, lambda part: part.write_text("x" * 4_000_000)),
):
    try:
        save()
    except RunError as error:
        print(error)
"""


def check_full(child, folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    write(path, drawn(1))
    before = path.read_bytes()
    done = child(FULL, path, how)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"cannot write {path}: ") and second.startswith(f"cannot write {path}")
    assert path.read_bytes() == before
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_a_limit_on_the_size_of_files_leaves_the_old_file(child, tmp_path):
    check_full(child, tmp_path, "limit")


def test_a_full_disk_leaves_the_old_file(child, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk here: {mounted.stderr.strip()}")
    try:
        check_full(child, tmp_path, "disk")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from fedspeech.tensors import read, sha256, write

path = Path(sys.argv[1])
models = [{"a": torch.full((500_000,), float(value))} for value in range(2)]
whole = [sha256(model) for model in models]
write(path, models[0])
moments = random.Random(0)
for _ in range(20):
    writer = os.fork()
    if writer == 0:
        while True:
            for model in models:
                write(path, model)
    time.sleep(moments.uniform(0, 0.05))
    os.kill(writer, signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    print(whole.index(sha256(read(path))))
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(child, tmp_path):
    done = child(KILLED, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 20
    # It was killed in the middle of a file at least once, or this test shows nothing.
    assert len(list(tmp_path.glob(".model.*.part"))) > 0


def test_a_file_and_then_its_name_are_flushed(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        there = (tmp_path / "a").exists()
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), there))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "a", lambda part: part.write_text("new"))
    assert flushed == [(False, False), (True, True)]
