"""One cell: within its bytes, as sparse as asked for, and judged as it comes out of them."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fedspeech import seeding, tensors
from fedspeech.diff import hashed, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.learned_sparse import CubicSchedule
from fedspeech.errors import RunError
from fedspeech.tensors import sha256
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.learner import learn, pruning
from fedspeech.training.neural_diff.worker import Bench

BL = Cell(0, 0, "BL")


@pytest.fixture(scope="module")
def setting(recognition, settings, task):
    config = settings(recognition())
    return task(config), config


@pytest.fixture(scope="module")
def first(setting):
    return learn(*setting, BL, None)


def changed(new, old):
    """For each matrix, the share of values that differ."""
    return {
        name: float((tensor != old[name]).float().mean())
        for name, tensor in new.items()
        if tensor.dim() > 1
    }


def test_the_unlimited_model_is_whole(first):
    assert first.data is None and first.sent == 1
    assert first.full == sum(4 * tensor.numel() for tensor in first.model.values())


@pytest.mark.parametrize("model", ["diff", "BLC"])
@pytest.mark.parametrize("method", ["sparse", "hash"])
def test_what_is_sent_fits_its_bytes_and_gives_the_model(setting, first, model, method):
    base = first.model if model == "diff" else None
    found = learn(*setting, Cell(0, 1, model, method, 10.0), base)
    assert len(found.data) <= first.full / 10
    assert sha256(apply(base or {}, found.data)) == sha256(found.model)
    assert found.sent == pytest.approx(0.1, rel=0.01)
    assert sha256(found.model) != sha256(first.model)


def test_a_sparse_diff_changes_a_tenth_of_each_matrix(setting, first):
    found = learn(*setting, Cell(0, 1, "diff", "sparse", 10.0), first.model)
    for share in changed(found.model, first.model).values():
        assert share == pytest.approx(0.1, abs=0.01)


def pruned_between(setting, model: str, **sparse):
    task, config = setting
    config = config.model_copy(update={"sparse": config.sparse.model_copy(update=sparse)})
    return pruning(task, config, Cell(0, 2, model, "sparse", 10.0))


def test_pruning_is_said_in_updates_or_in_shares_of_them(setting):
    """Generation 2 has all 36 utterances: five minibatches in each of two epochs."""
    for prune, between in (
        ((3, 9), (3, 9)),
        ((1, 2), (1, 2)),
        ((0.1, 0.5), (1, 5)),
        ((0.0, 1.0), (0, 10)),
    ):
        for model, name in (("diff", "prune"), ("BLC", "compressed_prune")):
            assert pruned_between(setting, model, **{name: prune}) == CubicSchedule(0.9, *between)
    with pytest.raises(RunError) as told:
        pruned_between(setting, "BLC", compressed_prune=(3, 1100))
    assert str(told.value) == (
        "sparse.compressed_prune ends with update 1,100, and seed-0.generation-2.BLC-sparse-10x "
        "has 10; set more epochs, or shares of the updates"
    )


def test_a_sparse_blc_has_a_tenth_of_its_weights(setting):
    found = learn(*setting, Cell(0, 1, "BLC", "sparse", 10.0), None)
    for name, tensor in found.model.items():
        if tensor.dim() > 1:
            assert float((tensor != 0).float().mean()) == pytest.approx(0.1, abs=0.01), name


def test_a_hashed_blc_has_few_different_weights(setting):
    """With one hash function as many as its array has cells."""
    task, config = setting
    config = config.model_copy(update={"hash": config.hash.model_copy(update={"hashes": 1})})
    found = learn(task, config, Cell(0, 1, "BLC", "hash", 10.0), None)
    weight = found.model["tdnn.1.conv.weight"]
    assert len(np.unique(weight.numpy())) <= round(weight.numel() / 10)


def test_the_hashed_blc_has_a_rate_and_hash_functions_of_its_own(setting):
    task, config = setting
    rate = {"compressed_learning_rate": 1e-12, "epochs": 1}
    still = config.model_copy(update={"hash": config.hash.model_copy(update=rate)})
    blc = {t: learn(task, still, Cell(0, t, "BLC", "hash", 10.0), None) for t in range(1, 3)}
    seeds = {t: wire.decode(each.data).seed for t, each in blc.items()}
    assert seeds[1] != seeds[2]
    with seeding.scoped(0, 0, "", "neural diff, initialization"):
        fresh = task.model(1)
    name = "tdnn.1.conv.weight"
    array = fresh.state_dict()[name].flatten()
    array = array[: round(len(array) / 10)].numpy() / np.sqrt(3)
    keys = hashed.keys(seeds[1], name, 0, 3)
    weight = sum(array[hashed.cells(key, 0, 10 * len(array), len(array))] for key in keys)
    found = blc[1].model[name].flatten().numpy()[: len(weight)]
    assert_allclose(found, weight[: len(found)], atol=1e-3)  # in float16, and not trained


def test_statistics_are_sent_as_they_are_and_not_as_what_they_change_by(setting, first):
    """From zero: then rounding is as small as the value, also where the change is large."""
    for method in ("sparse", "hash"):
        made = learn(*setting, Cell(0, 1, "diff", method, 10.0), first.model)
        entries = {entry.name: entry.change.name for entry in wire.decode(made.data).entries}
        measured = {name for name in entries if "running" in name}
        assert {entries[name] for name in measured} == {"FRESH"} and len(measured) >= 4
        assert {entries[name] for name in entries if name not in measured} == {"CHANGED"}


def test_more_phrases_make_more_rows_and_both_methods_bring_them(understanding, settings, task):
    config = settings(understanding())
    found = task(config)
    start = learn(found, config, BL, None)
    for method in ("sparse", "hash"):
        made = learn(found, config, Cell(0, 1, "diff", method, 20.0), start.model)
        rows = made.model["embedding.weight"]
        assert len(rows) == len(start.model["embedding.weight"]) + 2
        assert rows[-1].abs().min() > 0
        (entry,) = (e for e in wire.decode(made.data).entries if e.name == "embedding.weight")
        assert entry.change.name == "GROWN"


def test_matrices_that_fell_back_are_told(setting, first, tmp_path):
    """A row of zeros in the base; written with the cell's figures."""
    task, config = setting
    base = {name: tensor.clone() for name, tensor in first.model.items()}
    base["tdnn.1.conv.weight"][0] = 0
    tensors.write(tmp_path / "models" / f"{BL.name}.safetensors", base)
    told = {
        cell: Bench(config, task, tmp_path).finish(cell)["additive"]
        for cell in (Cell(0, 1, "diff", "hash", 10.0), Cell(0, 1, "diff", "sparse", 10.0))
    }
    assert list(told.values()) == [["tdnn.1.conv.weight"], []]


def test_the_same_cell_is_the_same_to_the_bit_and_seeds_differ(setting, first):
    cell = Cell(0, 1, "diff", "hash", 10.0)
    one, two = (learn(*setting, cell, first.model) for _ in range(2))
    other = learn(*setting, cell._replace(seed=1), first.model)
    assert one.data == two.data != other.data


def test_a_training_that_diverges_says_whose_it_is(setting, monkeypatch):
    task, config = setting
    model = task.model(0)
    with torch.no_grad():
        model.output.bias.fill_(torch.nan)
    monkeypatch.setattr(task, "model", lambda generation: model)
    with pytest.raises(RunError, match=r"seed-0\.generation-0\.BL: training diverged in epoch 1"):
        learn(task, config, BL, None)
