"""The table of diffs: what a row says, recomputed."""

import pytest
import torch

from experiments.benchmarks import diffs, workload
from experiments.benchmarks.harness import Setting
from fedspeech import tensors
from fedspeech.diff import inspect, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.contents import Form
from fedspeech.diff.values import Kind

TRAINING = diffs.Training("tiny", 1, 2)
PLAN = diffs.Plan((TRAINING,), utterances=6, ratios=(5,), hash_ratio=10, repeats=2)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(workload.SIZES, "tiny", "benchmark-tiny")
        yield diffs.Case(Setting(tmp_path_factory.mktemp("diffs")), TRAINING, PLAN.utterances)


def test_every_value_was_fine_tuned(case):
    """By about the rate in each of the two updates, as Adam does."""
    moved = case.new["output.weight"] - case.old["output.weight"]
    assert (moved != 0).float().mean() > 0.99 and moved.abs().max() < 3 * workload.RATE
    assert case.full == tensors.size(case.new)


@pytest.mark.parametrize("kind", Kind)
def test_sparse_diffs_fit_their_budget(case, kind):
    made, stored, seconds = case.sparse(5, kind)
    assert len(made.data) <= case.full // 5 and seconds > 0
    assert wire.decode(made.data).kind == kind
    changed = sum(
        int((made.result[n] != t).sum()) for n, t in case.old.items() if t.is_floating_point()
    )
    assert sum((each.values != 0).sum() for each in stored) == pytest.approx(changed, rel=0.01)
    row = case.size_of(made, stored, kind)
    assert row["bytes"] == len(made.data) and row["lost, %"] == 100 * made.lost
    ours = sum(each.bound for each in inspect.costs(made.data))
    assert row["/ the bound"] == pytest.approx(len(made.data) / ours, rel=0.15)


def test_hashed_diffs_have_the_cells_that_are_asked_for(case):
    made, stored, _ = case.hashed(10, Kind.INT8)
    segments = [e.segments[0] for e in wire.decode(made.data).entries if e.segments]
    arrays = [segment for segment in segments if segment.form != Form.SPARSE]
    assert [len(each.codes) for each in arrays] == [round(each.values / 10) for each in arrays]
    hashed = [each.values for each in stored if not each.sparse]
    assert [len(values) for values in hashed] == [len(each.codes) for each in arrays]
    for values, each in zip(hashed, arrays, strict=True):
        code = each.codes.astype(int)
        assert (values == (code + 1) // 2 * (1 - 2 * (code % 2))).all()
    assert case.hashed(10, Kind.FP32)[2] == case.hashed(10, Kind.FP16)[2]  # fitted once


def test_arrays_that_fell_back_are_meant_additively():
    case = object.__new__(diffs.Case)
    case.old = {"w": torch.randn(30, 40, generator=torch.Generator().manual_seed(0))}
    case.old["w"][3] = 0
    case.new = {"w": case.old["w"] + 0.1}
    made, _, _ = case.hashed(10, Kind.FP32)
    assert wire.decode(made.data).additive == ("w",)
    assert made.lost < 0.05


def test_what_is_timed_gives_the_new_model(case):
    made, _, _ = case.sparse(5, Kind.INT8)
    row = case.speed_of(made, 2)
    assert all(len(each["values"]) == 2 and each["low"] > 0 for each in row.values())
    written = tensors.read(case._next)
    assert all(torch.equal(written[n], t) for n, t in apply(case.old, made.data).items())


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(workload.SIZES, "tiny", "benchmark-tiny")
    rows = list(diffs.rows(Setting(tmp_path), PLAN))
    assert [(row["method"], row["ratio"]) for row in rows] == [("sparse", 5)] * 4 + [
        ("hashed", 10)
    ] * 4
    assert [row["values"] for row in rows[:4]] == ["fp32", "fp16", "bf16", "int8"]
    panels = {name for panel in diffs.PANELS for name in (panel.along, panel.value, *panel.series)}
    assert all(panels <= set(row) for row in rows)
