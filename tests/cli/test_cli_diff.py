"""`fedspeech diff`: what it writes and says, and what it refuses."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import generations

from fedspeech.diff import inspect as inspection
from fedspeech.diff import wire
from fedspeech.diff.contents import Form
from fedspeech.diff.values import Kind
from fedspeech.tensors import read, sha256, size, write

HASH = "[0-9a-f]{64}"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """`old` and `new` in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, model in zip(("old", "new"), generations(), strict=True):
        write(tmp_path / name, model)
    return generations()


def test_make_apply_and_inspect(fedspeech, models, tmp_path):
    status, out, err = fedspeech("diff", "make", "old", "new", "--budget", "0.8kB", "-o", "x.diff")
    assert status == 0, err
    made, whole, gives = out.splitlines()
    assert whole == "8 bytes as they are, for their dtype is sent whole: norm.count"
    data = (tmp_path / "x.diff").read_bytes()
    assert 750 < len(data) <= 800
    ratio, lost = size(models[1]) / len(data), float(re.search(r"; ([\d.]+) % of", made)[1])
    assert made.startswith(f"x.diff: {len(data):,} bytes, NEW has {ratio:.4g} times as many; ")
    assert 0 < lost < 100
    assert re.search(r"^precisions tried: \d+ in .*, best so far int8 in steps of", err, re.M)
    status, out, err = fedspeech("diff", "apply", "old", "x.diff", "-o", "result")
    assert (status, err) == (0, "")
    result = sha256(read(tmp_path / "result"))
    assert out == f"result: {result}\n"
    assert gives == f"gives {result}, near NEW, not to the bit"
    status, out, err = fedspeech("diff", "inspect", "x.diff")
    assert (status, err) == (0, "")
    base, gives, values, total, head, *rows = out.splitlines()
    assert base == f"base    {sha256(models[0])}" and gives == f"result  {result}"
    assert (values, total.split(",")[0]) == ("values  int8", f"bytes   {len(data)}")
    assert (
        head.split()
        == " ".join(["tensor dtype change form codes of entry positions values / bound"]).split()
    )
    assert f"times the bound of {inspection.least(wire.decode(data)):,.0f}" in total
    assert len(rows) == len(inspection.costs(data))
    # Every column begins where its heading does.
    places = [head.index(name) for name in ("entry", "positions", "values", "/ bound", "")]
    cells = [
        [
            row[a:b].strip().replace(",", "")
            for a, b in zip(places, [*places[1:-1], None], strict=False)
        ]
        for row in rows
    ]
    assert sum(int(cell) for row in cells for cell in row[:3] if cell) == len(data)


@pytest.mark.parametrize(
    ("options", "kind", "hashes", "seed", "forms"),
    [
        ("--sparsity 0.9", Kind.FP32, 0, 0, {Form.SPARSE}),
        ("--sparsity 0.9 --values fp16", Kind.FP16, 0, 0, {Form.SPARSE}),
        ("--method hash --cells 0.1", Kind.FP32, 3, None, set(Form) - {Form.REPEATED}),
        (
            "--method hash --cells 0.1 --hashes 2 --seed 7 --additive --values bf16",
            *(Kind.BF16, 2, 7, {Form.SPARSE, Form.ADDITIVE}),
        ),
    ],
)
def test_amounts_can_be_given_as_the_paper_does(
    fedspeech, models, tmp_path, options, kind, hashes, seed, forms
):
    status, _, err = fedspeech("diff", "make", "old", "new", *options.split(), "-o", "x.diff")
    assert status == 0, err
    diff = wire.decode((tmp_path / "x.diff").read_bytes())
    assert (diff.kind, diff.hashes) == (kind, hashes)
    assert diff.seed == int(sha256(models[0])[:16], 16) if seed is None else diff.seed == seed
    segments = [s for entry in diff.entries for s in entry.segments]
    assert {segment.form for segment in segments} == forms
    if not hashes:
        floats = sum(t.numel() for t in models[1].values() if t.dtype == torch.float32)
        changed = sum((segment.codes != 0).sum() for segment in segments)
        assert changed == pytest.approx(floats / 10, abs=1)
    matrices = [s for e in diff.entries for s in e.segments if e.name == "dense.weight" and hashes]
    assert [len(segment.codes) for segment in matrices] == [72] * len(matrices)


def test_a_budget_as_a_ratio_is_that_of_the_new_model(fedspeech, models, tmp_path):
    fedspeech("diff", "make", "old", "new", "--budget", "20x", "-o", "x.diff")
    most = size(models[1]) // 20
    assert 0.95 * most < len((tmp_path / "x.diff").read_bytes()) <= most


def test_in_a_terminal_it_is_a_table(fedspeech, models, monkeypatch):
    fedspeech("diff", "make", "old", "new", "-o", "x.diff")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "150")
    _, out, _ = fedspeech("diff", "inspect", "x.diff")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert re.search(
        r"│ output.weight \(new rows\) +│ float32 +│ grown +│ sparse +│ 48 +│ 48 +│ 0 ", plain
    )


# What is refused: one line, status 2, nothing written.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("old new --budget five", "budget: expected bytes (500kB, 64KiB) or a ratio (10x), found"),
        ("old new --budget 50", "a budget of 50 bytes is too small: the least is "),
        ("old new --values fp8", "values: expected one of fp32, fp16, bf16, int8, found 'fp8'"),
        ("old new --method spars", "--method: expected sparse or hash, found 'spars'"),
        ("old new --sparsity 1", "--sparsity: expected at least 0 and below 1, found 1.0"),
        ("old new --sparsity nan", "--sparsity: expected at least 0 and below 1, found nan"),
        ("old new --method hash --cells 0", "--cells: expected above 0 and at most 1, found 0.0"),
        ("old new --cells 0.1", "--cells is an option of --method hash, not of sparse"),
        ("old new --additive", "--additive is an option of --method hash, not of sparse"),
        ("old new --method hash --sparsity 0.9", "--sparsity is an option of --method sparse, not"),
        ("old new --method hash --hashes 17", "hash functions: expected 1 to 16, found 17"),
        ("old new --method hash --seed -1", "seed: expected at least 0 and below 2**64, found -1"),
        ("old nothing", "nothing: not a readable model: "),
        ("old nan", "the new model: 1 of 4 values of tensor w are NaN or infinite"),
        ("nan nan", "the new model: 1 of 4 values of tensor w are NaN"),
        ("old .", ".: not a readable model: "),
    ],
)
def test_what_cannot_be_made_is_one_message(fedspeech, models, tmp_path, arguments, told):
    write(tmp_path / "nan", {"w": torch.tensor([1, 2, torch.nan, 4])})
    status, out, err = fedspeech("diff", "make", *arguments.split(), "-o", "x.diff")
    message = err.splitlines()[-1]
    assert (status, out) == (2, "") and "inf lost" not in err
    assert message.startswith(f"fedspeech: {told}")
    assert sum("fedspeech" in line for line in err.splitlines()) == 1 and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan", "new", "old"]


def test_what_is_read_is_not_written_over(fedspeech, models, tmp_path):
    fedspeech("diff", "make", "old", "new", "-o", "x.diff")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "hard").hardlink_to(tmp_path / "new")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for command, out, name in (
        ("make old new", "old", "OLD"),
        ("make old new", "link", "OLD"),
        ("make old new", "hard", "NEW"),
        ("apply old x.diff", "x.diff", "the diff"),
    ):
        status, _, err = fedspeech("diff", *command.split(), "-o", out)
        told = f"fedspeech: --out: {Path(out)} is {name}, which would be lost; name another file\n"
        assert (status, err) == (2, told)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("command", ["make old new", "apply old x.diff"])
@pytest.mark.parametrize("out", ["fifo", "to-fifo"])
def test_what_is_no_file_is_not_written_over(fedspeech, models, tmp_path, command, out):
    fedspeech("diff", "make", "old", "new", "-o", "x.diff")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    status, said, err = fedspeech("diff", *command.split(), "-o", out)
    told = f"fedspeech: cannot write {out}: something that is no regular file is there\n"
    # Nothing was tried, or progress would stand before it.
    assert (status, said, err) == (2, "", told)
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "to-fifo").is_symlink()


def test_a_folder_to_be_written_is_one_clear_message(fedspeech, models, tmp_path):
    (tmp_path / "folder").mkdir()
    fedspeech("diff", "make", "old", "new", "-o", "x.diff")
    for out in ("folder", "."):
        status, said, err = fedspeech("diff", "apply", "old", "x.diff", "-o", out)
        told = f"fedspeech: cannot write {out}: a directory is there\n"
        assert (status, said, err) == (2, "", told)


def test_a_diff_is_written_where_a_link_leads(fedspeech, models, tmp_path):
    (tmp_path / "link").symlink_to("x.diff")
    assert fedspeech("diff", "make", "old", "new", "-o", "link")[0] == 0
    assert fedspeech("diff", "apply", "old", "x.diff", "-o", "result")[0] == 0
    assert (tmp_path / "link").is_symlink()


def test_tensors_that_are_sent_whole_are_named(fedspeech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = {f"w{i}": torch.zeros(40, dtype=torch.int16) for i in range(5)}
    old["h"] = torch.zeros(50, dtype=torch.bfloat16)
    old["v"] = torch.zeros(100)
    write(tmp_path / "old", old)
    write(tmp_path / "new", {name: tensor + 1 for name, tensor in old.items()})
    _, out, _ = fedspeech("diff", "make", "old", "new", "-o", "x.diff")
    assert out.splitlines()[1:3] == [
        "400 bytes as they are, for their dtype is sent whole: w0, w1, w2 and 2 more",
        "100 bytes as they are, for most of them changes: h",
    ]
    _, _, err = fedspeech("diff", "make", "old", "new", "-o", "x.diff", "--budget", "300")
    assert err.endswith(", 400 of them tensors that go as they are\n")


@pytest.mark.parametrize("method", ["sparse", "hash"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_value_of_a_model_in_half_precision(fedspeech, tmp_path, monkeypatch, dtype, method):
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(1)
    old = {name: torch.randn(200, 200, generator=draw).to(dtype) for name in ("a", "b")}
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["b"][7, 9] += 1
    write(tmp_path / "old", old)
    write(tmp_path / "new", new)
    for most in ([], ["--budget", "10x"])[method == "hash" :]:
        making = ("diff", "make", "old", "new", "--method", method, *most, "-o", "x.diff")
        status, out, err = fedspeech(*making)
        assert status == 0, err
        assert "as they are" not in out
        assert len((tmp_path / "x.diff").read_bytes()) <= size(new) // 10
        status, out, _ = fedspeech("diff", "inspect", "x.diff")
        row = out.splitlines()[6].split()
        assert (status, row[:2]) == (0, ["b", str(dtype).removeprefix("torch.")])
        assert fedspeech("diff", "apply", "old", "x.diff", "-o", "result")[0] == 0
        assert {n: t.dtype for n, t in read(tmp_path / "result").items()} == {
            "a": dtype,
            "b": dtype,
        }
        if method == "sparse":
            assert sha256(read(tmp_path / "result")) == sha256(new)
            assert len((tmp_path / "x.diff").read_bytes()) < 140


def test_matrices_with_a_row_of_zeros_are_additive_and_named(fedspeech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(1)
    old = {name: torch.randn(30, 20, generator=draw) for name in ("a", "b")}
    old["b"][7] = 0
    new = {name: tensor + 0.1 for name, tensor in old.items()}
    write(tmp_path / "old", old)
    write(tmp_path / "new", new)
    hashing = ("--method", "hash", "--cells", "1", "-o", "x.diff")
    _, out, _ = fedspeech("diff", "make", "old", "new", *hashing)
    assert "additive, for |value| times a sum moves no zeros: b" in out.splitlines()
    entries = {e.name: e for e in wire.decode((tmp_path / "x.diff").read_bytes()).entries}
    assert entries["a"].segments[0].form == Form.MULTIPLICATIVE
    fedspeech("diff", "apply", "old", "x.diff", "-o", "result")
    moved = read(tmp_path / "result")["b"][7]
    assert (moved - 0.1).abs().mean() < 0.02
    _, out, _ = fedspeech("diff", "make", "old", "new", *hashing, "--additive")
    assert "moves no zeros" not in out


def test_of_a_matrix_that_grows_the_new_rows_are_named(fedspeech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(1)
    old = torch.randn(30, 20, generator=draw)
    write(tmp_path / "old", {"a": old})
    write(tmp_path / "new", {"a": torch.cat([old + 0.1, torch.ones(30, 20)])})
    hashing = ("--method", "hash", "--cells", "0.9", "-o", "x.diff")
    _, out, _ = fedspeech("diff", "make", "old", "new", *hashing)
    assert "additive, for |value| times a sum moves no zeros: a (new rows)" in out.splitlines()
    (entry,) = wire.decode((tmp_path / "x.diff").read_bytes()).entries
    assert [s.form for s in entry.segments] == [Form.MULTIPLICATIVE, Form.ADDITIVE]


def test_a_diff_that_brings_all_says_that_it_does(fedspeech, tmp_path, monkeypatch):
    """Adding to 0.0 never gives -0.0: nothing is lost, and it is another model all the same."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "old", {"w": torch.zeros(4)})
    for values, to_the_bit in (([0.0, 1.0, 0.0, 2.0], True), ([-0.0, 1.0, 0.0, 2.0], False)):
        write(tmp_path / "new", {"w": torch.tensor(values)})
        _, out, _ = fedspeech("diff", "make", "old", "new", "-o", "x.diff")
        made, gives = out.splitlines()
        assert made.endswith("; 0 % of the change's square is lost")
        assert gives.endswith(", NEW to the bit" if to_the_bit else ", near NEW, not to the bit")


def test_zeros_that_stay_are_counted(fedspeech, tmp_path, monkeypatch):
    """Few as they are, the multiplicative form loses less all the same."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(1)
    old = {name: torch.randn(30, 20, generator=draw) for name in ("a", "b", "c")}
    new = {name: tensor + 0.5 * tensor.abs() for name, tensor in old.items()}
    for name in ("b", "c"):
        old[name][:3, 0] = new[name][:3, 0] = 0
    new["b"][:2, 0] = 1e-3
    write(tmp_path / "old", old)
    write(tmp_path / "new", new)
    _, out, _ = fedspeech(
        "diff", "make", "old", "new", "--method", "hash", "--cells", "0.1", "-o", "x.diff"
    )
    assert "2 zeros stay, for |value| times a sum does not move them: b" in out.splitlines()
    assert "additive" not in out


def test_what_devices_would_not_take_is_not_made(fedspeech, tmp_path, monkeypatch):
    """A fresh tensor that is mostly zeros takes few bytes, and a device much memory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "old", {"a": torch.ones(5)})
    for zeros, status in ((20_000, 0), (1_000_000, 2)):
        write(tmp_path / "new", {"a": torch.ones(5), "b": torch.zeros(zeros)})
        found, _, err = fedspeech("diff", "make", "old", "new", "-o", f"{zeros}.diff")
        assert found == status, err
    assert err.startswith("fedspeech: 1000000 values start from zero; a diff of ")
    assert fedspeech("diff", "apply", "old", "20000.diff", "-o", "result")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"20000.diff", "new", "old", "result"}


EMPTY = [(0,), (0, 5), (4, 0), (0, 2, 3), ()]


@pytest.mark.parametrize("method", ["sparse", "hash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_tensors_of_no_values_and_of_one(fedspeech, tmp_path, monkeypatch, method, dtype):
    """They come, go, change their shape, and stand beside others or alone."""
    monkeypatch.chdir(tmp_path)
    old = {f"t{i}": torch.ones(shape, dtype=dtype) for i, shape in enumerate(EMPTY)}
    turned = {f"t{i}": torch.zeros(shape, dtype=dtype) for i, shape in enumerate(EMPTY[::-1])}
    matrix = torch.eye(6)
    for before, after in (
        (old, turned),
        ({**old, "m": matrix}, {**turned, "m": matrix + 1}),
        ({}, old),
        (old, {}),
        (turned, old),
    ):
        write(tmp_path / "old", before)
        write(tmp_path / "new", after)
        for budget in ((), ("--budget", "3kB")):
            making = ("diff", "make", "old", "new", "-o", "x.diff", "--method", method)
            made = fedspeech(*making, *budget)
            assert made[0] == 0, made
            assert fedspeech("diff", "inspect", "x.diff")[0] == 0
            applied = fedspeech("diff", "apply", "old", "x.diff", "-o", "result")
            assert applied[0] == 0, applied
        found = read(tmp_path / "result")
        assert {n: tuple(t.shape) for n, t in found.items()} == {
            n: tuple(t.shape) for n, t in after.items()
        }


@pytest.fixture
def diff(fedspeech, models, tmp_path) -> bytes:
    fedspeech("diff", "make", "old", "new", "-o", "x.diff")
    return (tmp_path / "x.diff").read_bytes()


DAMAGE = {
    "truncated": (lambda data: data[:-7], r"the diff is damaged: \d+ bytes, and its header says"),
    "flipped": (lambda d: d[:200] + bytes([d[200] ^ 4]) + d[201:], "its checksum does not fit"),
    "newer": (
        lambda d: d[:8] + b"\5" + d[9:],
        "the diff has format version 5, and this program knows versions up to 4; update it",
    ),
    "other": (lambda data: b"PK" + data, "this is not a diff: it does not begin as one"),
    "empty": (lambda data: b"", "this is not a diff"),
}


@pytest.mark.parametrize("command", ["inspect x.diff", "apply old x.diff -o result"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_diff_is_one_message(fedspeech, diff, tmp_path, damage, command):
    change, told = DAMAGE[damage]
    (tmp_path / "x.diff").write_bytes(change(diff))
    status, out, err = fedspeech("diff", *command.split())
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert re.match(f"fedspeech: x.diff: .*{told}", err)
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("command", ["inspect x.diff", "apply old x.diff -o result"])
@pytest.mark.parametrize("begins", [True, False])
def test_what_is_longer_than_any_memory_is_one_message(fedspeech, diff, tmp_path, begins, command):
    if not begins:
        (tmp_path / "x.diff").write_bytes(b"")
    os.truncate(tmp_path / "x.diff", 1 << 42)
    status, out, err = fedspeech("diff", *command.split())
    told = f"the diff is damaged: more than the {len(diff)} bytes that its header says"
    told = told if begins else "this is not a diff: it does not begin as one"
    assert (status, out, err) == (2, "", f"fedspeech: x.diff: {told}\n")
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("new x.diff", rf"x.diff: the diff is for the model {HASH}, and this one is {HASH}"),
        ("old nothing", "nothing: not a readable diff: No such file or directory"),
        ("old .", r"\.: not a readable diff: Is a directory"),
        ("nothing x.diff", "nothing: not a readable model: "),
        ("old more.diff", "more.diff: the diff changes tensor 'more', which the model lacks"),
    ],
)
def test_what_cannot_be_applied_is_one_message(fedspeech, diff, tmp_path, arguments, told):
    found = wire.decode(diff)
    more = tuple(replace(e, name="more") if e.name == "gone" else e for e in found.entries)
    more = tuple(sorted(more, key=lambda entry: entry.name))
    (tmp_path / "more.diff").write_bytes(wire.encode(replace(found, entries=more)))
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = fedspeech("diff", "apply", *arguments.split(), "-o", "result")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert re.match(f"fedspeech: {told}", err)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_while_applying_leaves_the_old_file(fedspeech, small_disk, tmp_path):
    folder, resize = small_disk
    resize(600_000)
    old, new = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    write(folder / "model", old)
    write(tmp_path / "new", new)
    arguments = (folder / "model", tmp_path / "new", "-o", tmp_path / "x.diff")
    assert fedspeech("diff", "make", *arguments)[0] == 0
    arguments = (folder / "model", tmp_path / "x.diff", "-o", folder / "model")
    status, out, err = fedspeech("diff", "apply", *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert f"cannot write {folder / 'model'}: " in err and "No space left" in err
    assert sha256(read(folder / "model")) == sha256(old)
    assert [path.name for path in folder.iterdir()] == ["model"]
