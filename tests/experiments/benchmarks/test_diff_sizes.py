"""Diffs of a run are weighed by what they send; a hashed one by its array."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.benchmarks import diff_size, diff_sizes
from fedspeech import tensors
from fedspeech.diff import budget, inspect, methods, wire
from fedspeech.diff.values import Kind

WAYS = {"sparse": methods.Sparse, "hash": partial(methods.Hashed, seed=9)}


def pair(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    old = {
        "a.bias": torch.randn(60, generator=draw),
        "a.weight": torch.randn(60, 90, generator=draw),
    }
    new = {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in old.items()}
    return {**old, "count": torch.tensor(3)}, {**new, "count": torch.tensor(4)}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("way", WAYS)
def test_the_bound_is_that_of_diff_inspect(way, kind):
    old, new = pair()
    data = budget.make(old, new, None, WAYS[way], kind, share=0.2).data
    row = diff_sizes.weigh(data)
    assert row["bytes"] == len(data)
    assert row["/ bound"] == pytest.approx(len(data) / inspect.least(wire.decode(data)), rel=1e-9)
    assert row["xz -9 / diff"] > 0


def test_an_array_is_weighed_by_the_entropy_of_its_cells():
    """int8, by plain counting: cells and what the bias sends have a table each, or one."""
    old, new = ({"w": model["a.weight"]} for model in pair())
    data = budget.make(old, new, None, WAYS["hash"], Kind.INT8, share=0.2).data
    (segment,) = wire.decode(data).entries[0].segments
    codes = segment.codes.tolist()
    assert len(codes) == 1080
    counts = np.array([codes.count(code) for code in set(codes)], float)
    bits = -(counts * np.log2(counts / 1080)).sum()
    choices = (diff_size._choices(255, len(counts)), diff_size._choices(1079, len(counts) - 1))
    wanted = (bits + sum(choices)) / 8
    assert diff_sizes.weigh(data)["/ bound"] == pytest.approx(len(data) / wanted, rel=1e-9)


@pytest.fixture
def run(tmp_path) -> Path:
    """Two seeds' diffs of both kinds, as a run keeps them."""
    folder = tmp_path / "run" / "models" / "diffs"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        for way, method in WAYS.items():
            data = budget.make(*pair(seed), None, method, Kind.FP16, share=0.2).data
            (folder / f"seed-{seed}.generation-1.diff-{way}-10x.diff").write_bytes(data)
    return tmp_path / "run"


def test_a_runs_diffs_have_a_row_each_and_one_for_those_alike(run, capsys):
    status = diff_sizes.main([str(run)])
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("| diff | bytes | / bound | xz -9 / diff |")
    names = [line.split(" | ")[0].strip("| ") for line in lines]
    assert names[:4] == [
        f"seed-{seed}.generation-1.diff-{way}-10x" for seed in (0, 1) for way in ("hash", "sparse")
    ]
    assert names[4:] == ["all 2 diff-hash-10x", "all 2 diff-sparse-10x"]
    rows = [[float(c.replace(",", "")) for c in line.split(" | ")[1:3]] for line in lines[:4]]
    assert lines[4].split(" | ")[1] == " to ".join(
        f"{r:,.0f}" for r in sorted([rows[0][0], rows[2][0]])
    )
    assert status == int(max(ratio for _, ratio in rows) > 1.05)


def test_what_cannot_be_weighed_is_told(run, tmp_path, capsys):
    path = next((run / "models" / "diffs").iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    assert diff_sizes.main([str(path)]) == diff_sizes.main([str(tmp_path / "no.diff")]) == 2
    damaged, missing = capsys.readouterr().err.splitlines()
    assert damaged.startswith(f"{path}: the diff is damaged") and "no.diff" in missing
    (tmp_path / "empty").mkdir()
    assert diff_sizes.main([str(tmp_path / "empty")]) == diff_sizes.main([]) == 2


def test_two_models_do_not_tell_an_array_and_the_script_says_so(tmp_path, capsys):
    old, new = pair()
    made = budget.make(old, new, None, WAYS["hash"], Kind.INT8, share=0.2)
    tensors.write(tmp_path / "old", old)
    tensors.write(tmp_path / "new", made.result)
    (tmp_path / "x.diff").write_bytes(made.data)
    names = [str(tmp_path / name) for name in ("old", "new", "x.diff")]
    assert diff_size.main([*names, "int8"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "changes are none of int8" in err
    assert f"python -m experiments.benchmarks.diff_sizes {names[2]}" in err
    diff_sizes.main(names[2:])
    assert capsys.readouterr().out.count("\n") == 3
