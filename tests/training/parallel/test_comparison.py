"""Comparing the ways to train: which rows there are, what is made of them, what is simulated."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from commands import until
from learners import (
    dies_beside,
    fails_beside,
    fails_to_compute,
    made_up_sums,
    others_beside,
)
from processes import left_running, marked, started_here, tells_its_gpus
from slow import slow
from torch._C._distributed_c10d import HashStore
from typer.testing import CliRunner

from fedspeech import corpus, machine
from fedspeech.cli import app
from fedspeech.config import DataParallelConfig, load
from fedspeech.config.comparison import Way
from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.config.engine import RaySettings
from fedspeech.errors import ConfigError, DivergedError, RunError
from fedspeech.models import build
from fedspeech.models.tdnn import MaskedBatchNorm
from fedspeech.run_folder import RunFolder
from fedspeech.training.parallel import cells as cells_of
from fedspeech.training.parallel import computing, loopback, method_of, mixing, results
from fedspeech.training.parallel.comparison import joined, left_apart, named, rows, way
from fedspeech.training.parallel.computing import Batch, Measured, statistics_of
from fedspeech.training.parallel.delay_by_one import DelayByOne
from fedspeech.training.parallel.group import Group
from fedspeech.training.parallel.loopback import link_of, measured_link
from fedspeech.training.parallel.predicted import Predictions
from fedspeech.training.parallel.simulated import PROCESSES
from fedspeech.training.parallel.simulated_world import Checkpoint, Link, Network
from fedspeech.training.parallel.task import Task

ROOT = Path(__file__).parents[3]
QUICK = {
    **{"epochs": 2, "batch_size": 8, "precision": "fp32", "dropout": [[0.0, 0.1]]},
    "augmentation": {"speeds": [1.0]},
}


@pytest.fixture(scope="module")
def table(tone_corpus, tmp_path_factory):
    tones = tone_corpus(tmp_path_factory.mktemp("tones"), 4, rounds=2)
    return {
        "name": "small",
        "kind": "data-parallel",
        "seeds": [0, 1],
        "corpus": {"path": str(tones)},
        "test": {"speakers": 1},
        "features": {"kind": "log-mel", "dimension": 16},
        "units": {"kind": "words"},
        "model": {"name": "tdnn-tiny"},
        "training": QUICK,
        "parallel": {"hook": "fp16"},
        "comparison": {
            **{"ways": ["allreduce", "ad-psgd random"], "closer": ["ad-psgd random"]},
            **{"learners": [1, 2], "larger": [4, 2], "straggler": 3.0},
        },
    }


@pytest.fixture
def settings(table):
    return DataParallelConfig.model_validate(table)


def test_every_way_has_a_row_for_each_number_of_learners_and_one_learner_a_single_one(settings):
    found = rows(settings)
    assert list(found) == [
        *("allreduce.1", "allreduce.2", "ad-psgd-random.2"),
        *("ad-psgd-random.2.batch-4x", "ad-psgd-random.2.batch-2x"),
        *("ad-psgd-random.2.capped", "ad-psgd-random.2.capped.straggler"),
    ]
    assert [joined(row) for row in found.values()] == [8, 8, 8, 32, 16, 8, 8]
    assert [row.training.batch_size for row in found.values()] == [8, 4, 4, 16, 8, 4, 4]
    assert found["ad-psgd-random.2.batch-4x"].training.scale == pytest.approx(2)
    assert found["allreduce.2"].training.scale == 1
    held, slowed = (found[f"ad-psgd-random.2.capped{end}"].parallel for end in ("", ".straggler"))
    assert (held.slowed, slowed.slowed) == ((1.0, 1.0), (1.0, 3.0))
    assert held.processor == slowed.processor == 0.4
    assert found["allreduce.2"].parallel.processor is None
    assert all(row.comparison is None for row in found.values())
    assert [row.seeds for row in found.values()] == [(0, 1)] * 5 + [(0,)] * 2


def test_one_learner_whose_gradients_are_late_is_another_one(settings):
    late = settings.comparison.model_copy(update={"ways": ("ring", "ad-psgd delay-by-one")})
    found = rows(settings.model_copy(update={"comparison": late}))
    alone = [name for name, row in found.items() if row.parallel.learners == 1]
    assert alone == ["allreduce.1", "ad-psgd-delay-by-one.1"]
    assert method_of(found["ad-psgd-delay-by-one.1"].parallel) is DelayByOne


def test_without_a_comparison_there_is_the_one_training(settings):
    alone = settings.model_copy(update={"comparison": None})
    assert rows(alone) == {"allreduce-fp16.2": alone}


def test_all_ways_are_there_and_can_be_simulated(settings):
    ways = Way.__args__
    assert set(ways) == set(PROCESSES)
    whole = settings.comparison.model_copy(update={"ways": ways})
    found = rows(settings.model_copy(update={"comparison": whole}))
    every = {way(row.parallel): method_of(row.parallel) for row in found.values()}
    assert set(every) == set(ways)
    assert len(set(every.values())) == len(ways) - 1  # two of ad-psgd are one class


@pytest.mark.parametrize(
    ("parallel", "left"),
    [
        ({"method": "allreduce", "learners": 4}, 0),
        ({"method": "ring", "learners": 4}, 1 / 3),
        ({"method": "ad-psgd", "learners": 4, "partner": "delay-by-one"}, 1 / 3),
        # A pair of two leaves nothing apart; of two pairs of three one leaves each end apart.
        ({"method": "ad-psgd", "learners": 2}, 0),
        ({"method": "ad-psgd", "learners": 3}, 3 / 4),
        # Whom one may meet tells these apart.
        ({"method": "ad-psgd", "learners": 6}, mixing.second_eigenvalue(mixing.pairs(6, False))),
        (
            {"method": "ad-psgd", "learners": 6, "partner": "random"},
            mixing.second_eigenvalue(mixing.pairs(6, True)),
        ),
        ({"method": "hierarchical", "learners": 4}, 0),
        ({"method": "bmuf", "learners": 4}, None),
        ({"method": "parameter-server", "learners": 4}, None),
    ],
)
def test_what_an_averaging_leaves_apart(parallel, left):
    found = left_apart(ParallelSettings(**parallel))
    assert found is None if left is None else found == pytest.approx(left, abs=1e-12)


def test_the_experiment_has_what_the_paper_compares():
    found = rows(load(ROOT / "experiments" / "data-parallel.toml"))
    assert len(found) == 2 + 8 * 2 + 2 * 3 + 2 * 2
    assert max(joined(row) for row in found.values()) == 64 * joined(found["allreduce.1"])
    assert {row.parallel.learners for row in found.values()} == {1, 2, 4}


def test_learners_that_cannot_share_a_batch_are_refused(table):
    odd = table | {"comparison": {"learners": [1, 3]}}
    with pytest.raises(ValueError, match="3 learners cannot share batches of 8"):
        DataParallelConfig.model_validate(odd)


def test_learners_that_make_no_whole_nodes_are_refused(table):
    odd = table | {"comparison": {"learners": [1, 3]}, "training": QUICK | {"batch_size": 9}}
    with pytest.raises(ValueError, match="3 learners make no whole nodes of 2"):
        DataParallelConfig.model_validate(odd)
    odd["comparison"]["ways"] = ["ring"]
    assert len(rows(DataParallelConfig.model_validate(odd))) > 1


@pytest.mark.parametrize("learners", [[1, 3], [3, 2], [1]])
def test_so_are_those_that_make_none_in_a_closer_comparison(table, tmp_path, learners):
    """Which is made with the most learners, also where that is one."""
    closer = {"learners": learners, "ways": ["ring"], "closer": ["hierarchical"]}
    file = tmp_path / "small.toml"
    odd = table | {"comparison": closer, "training": QUICK | {"batch_size": 12}}
    file.write_text(tomli_w.dumps(odd))
    most = max(learners)
    told = (
        rf"comparison\.learners: {most} learners make no whole nodes of 2 \(parallel\.node_size\)"
    )
    with pytest.raises(ConfigError, match=told):
        load(file)
    file.write_text(tomli_w.dumps(odd | {"parallel": {"node_size": most}}))
    assert "hierarchical" in {row.parallel.method for row in rows(load(file)).values()}


def test_rows_are_trained_in_turns_of_their_seeds(settings):
    every = rows(settings)
    found = cells_of.in_turns(every)
    seeds = [each.seed for each in found]
    assert seeds == sorted(seeds) and set(seeds) == {0, 1}
    names = [named(name, seed) for seed in (0, 1) for name in every if seed in every[name].seeds]
    assert [each.name for each in found] == names
    assert [each.name for each in found if not each.compared] == [names[0], names[len(every)]]


def figures(errors: list[int], losses: list[float], **more) -> dict:
    return {
        "parameters": 7,
        "losses": losses,
        "errors": {"a": errors, "b": errors},
        "words": {"a": [5, 5], "b": [5, 5]},
        **more,
    }


def test_rows_are_judged_over_all_seeds_beside_one_learner(settings):
    every = rows(settings)
    of_cells = {
        named(row, seed): figures([1, 1 + seed], [4.0, 2.0 + seed])
        for row in every
        for seed in every[row].seeds
    }
    of_cells[named("allreduce.2", 0)] = figures([5, 5], [], diverged="no number")
    of_cells[named("ad-psgd-random.2.batch-4x", 0)] = figures([4, 4], [3.0, 3.0])
    # Good enough, had it not diverged.
    of_cells[named("ad-psgd-random.2.batch-2x", 0)] = figures([2, 2], [], diverged="no number")
    found = results.assemble(settings, every, 0, of_cells)
    table = {row["row"]: row for row in found["table"]}
    one = table["allreduce.1"]
    assert one["mean"] == pytest.approx(100 * (2 + 3) / 20) and one["seeds"] == [20.0, 30.0]
    assert one["losses"] == [4.0, 2.5] and one["minus_one"] is None and one["converges"]
    # Nothing was heard with one seed, and three errors in ten words with the other.
    lost = table["allreduce.2"]
    assert lost["mean"] == pytest.approx(100 * (10 + 3) / 20)
    assert lost["losses"] == [4.0, 3.0] and lost["diverged"] == 1 and not lost["converges"]
    assert lost["minus_one"]["mean"] == pytest.approx(65 - 25)
    # 55 % is more than twice 25 %.
    assert not table["ad-psgd-random.2.batch-4x"]["converges"]
    assert not table["ad-psgd-random.2.batch-2x"]["converges"]
    assert table["ad-psgd-random.2.batch-2x"]["mean"] < 2 * one["mean"]
    assert table["ad-psgd-random.2"]["converges"]
    # Where learners are held there is one seed, and one learner's with the same one.
    slowed = named("ad-psgd-random.2.capped.straggler", 0)
    assert named("ad-psgd-random.2.capped.straggler", 1) not in of_cells
    of_cells[slowed] = figures([2, 1], [4.0, 3.0])
    *_, held = results.assemble(settings, every, 0, of_cells)["table"]
    assert (held["mean"], held["seeds"], held["losses"]) == (30.0, [30.0], [4.0, 3.0])
    assert held["minus_one"]["mean"] == pytest.approx(30 - 20)
    assert found["batch_size"] == 8 and found["parameters"] == 7


NO_TIME = Checkpoint(0.0, 0.0, 0.0)


def took(*seconds: float) -> list[Batch]:
    """Batches of as many frames each."""
    return [Batch(0.0, each, 100) for each in seconds]


def fed(batches: dict[int, dict[int, list[Batch]]]) -> Measured:
    return Measured(batches, Link(1e9, 0.0), NO_TIME, 0.01)


def test_predictions_are_fed_with_batches_of_the_rows_own_size(settings, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    batches = {
        4: {1: took(0.1), 2: took(0.1)},
        8: {1: took(0.2), 2: took(0.25)},
        16: {1: [Batch(3.0, 3.4, 50)], 2: took(0.4)},
    }
    model = build("tdnn-tiny", 16, 5)
    found = Predictions(settings, fed(batches), 80, model)
    every = rows(settings)
    case = found.of_row(every["ad-psgd-random.2.batch-4x"])
    assert (case.method, case.learners) == ("ad-psgd random", 2)
    assert (case.seconds, case.frames) == ([0.4], [50])
    assert case.batches == 5 and case.together == [1.0, 2.0]
    assert found.of_row(every["ad-psgd-random.2.batch-2x"]).together == pytest.approx([1.0, 1.6])
    assert case.checkpoint == NO_TIME and not case.one_writes
    assert found.of_row(every["allreduce.2"]).one_writes and case.step == 0.01
    assert case.size == 4 * sum(p.numel() for p in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
    assert case.statistics == 2 * len(norms) > 0 and case.block == settings.parallel.block
    held = found.of_row(every["ad-psgd-random.2.capped.straggler"])
    assert held.seconds == [0.25] and held.slowed == (1.0, 3.0) and not held.together
    threads = settings.model_copy(update={"engine": RaySettings(cpus_per_worker=2)})
    assert found.of_row(rows(threads)["ad-psgd-random.2.capped"]).seconds == [0.5]
    assert found.of_row(rows(threads)["allreduce.2"]).seconds == [0.1]
    many = found.of_many("ring", 128, Network(Link(1e6, 0.5)))
    assert many.seconds == [0.2] and many.batches == 10 and not many.together
    assert many.network.link(0, 127) == Link(1e6, 0.5)
    told = found.table(every)
    # Ten batches of 0.2 s; 20 of 0.1 s by a learner of 0.4 of a processor, thrice as slow, and one.
    assert told["rows"]["allreduce.1"] == pytest.approx(2.0)
    straggler = told["rows"]["ad-psgd-random.2.capped.straggler"]
    assert straggler == pytest.approx(20 * 0.25 / (1 + 1 / 3), rel=0.06)
    assert {point["learners"] for point in told["curves"]} >= {1, 128}


def test_a_network_may_be_faster_inside_nodes(settings):
    """Two nodes of two: what allreduce takes longer hangs on the slowest link of its ring."""
    outside, inside = ({"bandwidth": rate, "latency": 0.0} for rate in (1e6, 1e9))
    asked = {"learners": [2, 4], "network": outside}
    seconds = {}
    for name, more in (("alike", {}), ("faster", {"node": inside})):
        table = settings.model_dump(mode="json")
        table["comparison"] |= {"ways": ["allreduce", "hierarchical"], "simulated": asked | more}
        changed = DataParallelConfig.model_validate(table)
        model = build("tdnn-tiny", 16, 5)
        found = Predictions(changed, fed({8: {1: took(0.2)}}), 8000, model).table({})
        for point in found["curves"]:
            seconds[name, point["way"], point["learners"]] = point["seconds"]
        assert (found["node"] or {}).get("size") == (2 if more else None)
    size = 4 * sum(p.numel() for p in model.parameters())
    for each, two in (("allreduce", 2 * size / 2), ("hierarchical", 2 * size)):
        for name, rate in (("alike", 1e6), ("faster", 1e9)):
            expected = 1000 / 2 * (0.2 + two / rate)
            assert seconds[name, each, 2] == pytest.approx(expected, rel=0.02)
    assert seconds["faster", "allreduce", 4] == pytest.approx(seconds["alike", "allreduce", 4])
    assert seconds["faster", "hierarchical", 4] < 0.7 * seconds["alike", "hierarchical", 4]


def test_a_hierarchy_is_simulated_with_whole_nodes_only(settings):
    """Learners of a node that is not whole would wait for one that is not there."""
    parallel = settings.parallel.model_copy(update={"node_size": 4})
    about = settings.comparison.model_copy(update={"ways": ("hierarchical", "ring")})
    asked = about.simulated.model_copy(update={"learners": (1, 2, 4, 6, 8)})
    about = about.model_copy(update={"simulated": asked})
    changed = settings.model_copy(update={"parallel": parallel, "comparison": about})
    found = Predictions(changed, fed({8: {1: took(0.2)}}), 80, build("tdnn-tiny", 16, 5))
    curves = found.table({})["curves"]
    counts = {way: [p["learners"] for p in curves if p["way"] == way] for way in about.ways}
    assert counts == {"hierarchical": [1, 2, 4, 8], "ring": [1, 2, 4, 6, 8]}


def test_statistics_are_counted_by_the_calls_of_the_model():
    model, calls = build("tdnn-tiny", 16, 5), []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, own):
            calls.append("forward")
            return own[None]

        @staticmethod
        def backward(ctx, gradient):
            calls.append("backward")
            return gradient[0]

    for module in model.modules():
        if hasattr(module, "gathered"):
            module.gathered = Counted.apply
    output, _ = model.train()(torch.randn(2, 50, 16), torch.tensor([50, 40]))
    output.sum().backward()
    assert len(calls) == statistics_of(model) > 2 and calls.count("forward") == len(calls) / 2


def test_a_link_follows_from_what_two_took():
    link = Link(2e9, 1e-4, 0.5e-9, busy=4e-3, beside=3e-3)
    small, large = 2 * link.latency, 2 * (link.latency + 8e6 / link.bandwidth)
    # Each of two sends two messages of 8 MB.
    assert link_of(small, large, 4e-3, 6e-3, 0.016, 16_000_000) == pytest.approx(link)


@pytest.mark.parametrize("places", [1, 2])
def test_a_link_is_measured_by_two_processes(places):
    found = measured_link(0.002, 4_000_000, places)
    assert all(0 < each < np.inf for each in found)
    assert found.bandwidth > 1e6 and max(found.latency, found.busy, found.beside) < 10


def test_messages_go_to_and_fro_beside_as_many_as_there_are_processors_for(monkeypatch):
    """One of the two that talk has a processor, and each of the others is computed on."""
    monkeypatch.setattr(loopback, "_sums", made_up_sums)
    monkeypatch.setattr(loopback, "_to_and_fro", others_beside)
    assert measured_link(0.002, 4_000_000, 4).beside == 3 / 2
    assert measured_link(0.002, 4_000_000, 1).beside == 1 / 2


@pytest.fixture(scope="module")
def task(table, tmp_path_factory):
    settings = DataParallelConfig.model_validate(table)
    return Task(settings, corpus.load(settings.corpus), tmp_path_factory.mktemp("features"))


def test_what_learners_do_together_follows_from_what_each_takes():
    batches = {4: took(0.5), 1: took(0.1, 0.3), 2: took(0.3)}
    found = fed({8: batches})
    # Three take 0.4 s, five to six as long as four.
    expected = [1, 2 / 1.5, 3 / 2, 4 / 2.5, 5 / 2.5, 6 / 2.5]
    assert found.together(8, 6) == pytest.approx(expected)
    assert found.together(8, 2) == pytest.approx(expected[:2])
    alone = fed({8: {1: took(0.2)}})
    assert alone.together(8, 3) == pytest.approx([1, 2, 3])


def test_all_that_rows_need_is_measured_once(settings, task, tmp_path, monkeypatch):
    """Learners compute side by side, as many as there are and have processors."""
    monkeypatch.setattr(computing.machine, "cores", lambda: 2)
    asked = []

    def beside(given, sizes, learners):
        asked.append((learners, sizes))
        return {size: took(size / 10 * learners) for size in sizes}

    monkeypatch.setattr(computing, "side_by_side", beside)
    pieces = []
    link = Link(1e9, 1e-4, 1e-9, 1e-3, 2e-3)
    monkeypatch.setattr(computing, "measured_link", lambda *given: pieces.append(given) or link)
    every = rows(settings).values()
    found = computing.measured(settings, every, tmp_path)
    assert asked == [(1, [4, 8, 16]), (2, [4, 8, 16])]
    assert found.batches[16] == {1: took(1.6), 2: took(3.2)} and found.here == link
    # A batch of 8 takes 0.8 s, with a sum forward and backward in each of seven normalizations.
    ((piece, size, places),) = pieces
    assert piece == pytest.approx(0.8 / 15) and places == 2
    assert size == 4 * sum(p.numel() for p in task.model(settings.seed).parameters())
    copying, work, seconds = found.checkpoint
    assert copying > 0 and 0 < work <= seconds and 0 < found.step < 1
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]
    assert computing.measured(settings, every, tmp_path) == found and len(asked) == 2
    kept = json.loads((tmp_path / "measured.json").read_text())
    damaged = [{"4": {"1": [0.1]}}, [], {"four": {}}]
    for other in ({"here": None}, {"step": None}, *({"batches": each} for each in damaged)):
        whole = {key: each for key, each in (kept | other).items() if each is not None}
        (tmp_path / "measured.json").write_text(json.dumps(whole))
        with pytest.raises(RunError, match=r"measured\.json: not what this version .* remove it"):
            computing.measured(settings, every, tmp_path)


def test_learners_side_by_side_compute_at_the_same_time(settings):
    alone = computing.side_by_side(settings, [4, 8], 1)
    for batches in alone.values():
        assert len(batches) >= 24 and sum(batch.seconds for batch in batches) > 1.9
    two = computing.side_by_side(settings, [4], 2)[4]
    assert len(two) >= 2 * 24
    # In the middle of nearly every batch the other learner measures one as well: both begin when
    # both have settled.
    began, ended = (np.array([getattr(batch, name) for batch in two]) for name in Batch._fields[:2])
    middles = (began + ended) / 2
    together = [((began < when) & (when < ended)).sum() == 2 for when in middles]
    assert np.mean(together) > 0.8


@pytest.mark.parametrize(
    ("batches", "seconds", "on"),
    [(1, 90.0, True), (2, 90.0, False), (2, 59.0, True), (24, 1.9, True), (24, 2.1, False)],
)
def test_how_many_batches_are_measured(batches, seconds, on):
    """Two of the slowest; of others 24, or as many as take two seconds."""
    assert computing._measures_on(batches, seconds) is on


def test_a_batch_has_as_many_frames_as_its_longest_utterance_for_each(settings, task, monkeypatch):
    monkeypatch.setattr(computing, "SETTLING", 0.0)
    training = settings.training.model_copy(update={"batch_size": 4})
    parallel = settings.parallel.model_copy(update={"learners": 1})
    changed = settings.model_copy(update={"training": training, "parallel": parallel})
    share = task.share(changed, settings.seed)
    first = share.parts_per_epoch * (training.epochs // 2)
    found = computing.learned(task, settings, 4, Group(0, 1, HashStore()))
    for number, batch in enumerate(found, first):
        chosen = share.part(number % share.parts).chosen
        lengths = [len(share.utterances[i].log_mel[1.0]) for i in chosen]
        assert batch.frames == len(chosen) * max(lengths)
    assert len(found) >= computing.STEPS


def test_a_learner_that_fails_side_by_side_ends_those_that_wait_for_it(settings, monkeypatch):
    monkeypatch.setattr(computing, "_beside", fails_beside)
    with pytest.raises(RunError, match="this one has too little memory"):
        computing.side_by_side(settings, [4], 3)


def test_one_that_dies_while_a_link_is_measured_is_told(monkeypatch):
    monkeypatch.setattr(loopback, "_sums", dies_beside)
    with pytest.raises(RunError, match=r"^of the processes that measured .* one died$"):
        measured_link(0.1, 4_000_000, 2)


def test_one_that_fails_beside_those_that_talk_ends_them(monkeypatch):
    monkeypatch.setattr(loopback, "_sums", made_up_sums)
    monkeypatch.setattr(loopback, "_computes", fails_to_compute)
    with pytest.raises(RunError, match="no processor is left"):
        measured_link(0.1, 4_000_000, 2)


@pytest.mark.parametrize(
    ("engine", "seen"),
    [
        ({}, ""),
        ({"gpus_per_worker": 0.5}, "7"),
        ({"gpus_per_worker": 0.5, "simulated_gpus": 1}, ""),
    ],
)
def test_who_measures_sees_a_gpu_only_where_learners_do(table, tmp_path, monkeypatch, engine, seen):
    """Ray hides the machine's from learners that ask for none."""
    settings = DataParallelConfig.model_validate(table | {"engine": engine})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    for name in ("_beside", "_kept_and_stepped"):
        monkeypatch.setattr(computing, name, tells_its_gpus)
    with pytest.raises(RunError, match=f"^GPUs: {seen}$"):
        computing.side_by_side(settings, [4], 1)
    with pytest.raises(RunError, match=f"^GPUs: {seen}$"):
        computing.checkpoint_and_step(settings, tmp_path)


BATCHES = """
import sys
from fedspeech.config import DataParallelConfig
from fedspeech.training.parallel.computing import side_by_side
side_by_side(DataParallelConfig.model_validate_json(sys.argv[1]), [4] * 10_000, 2)
"""
LINK = """
from fedspeech.training.parallel.loopback import measured_link
measured_link(100.0, 4_000_000, 2)
"""


def deaf() -> list[int]:
    """Those of a command's workers that ignore Ctrl-C, as soon as they have begun."""
    found = []
    for number, name in started_here().items():
        status = Path(f"/proc/{number}/status").read_text()
        (ignored,) = (line.split()[1] for line in status.splitlines() if "SigIgn" in line)
        if "spawn_main" in name and int(ignored, 16) >> signal.SIGINT - 1 & 1:
            found.append(number)
    return found


@pytest.mark.parametrize(
    ("code", "workers", "sent"), [(BATCHES, 2, signal.SIGKILL), (LINK, 3, signal.SIGINT)]
)
def test_who_measures_ends_with_the_run(settings, code, workers, sent):
    """Which is killed, or stopped by Ctrl-C, of which a terminal tells the workers as well."""
    line = [sys.executable, "-c", code, settings.model_dump_json()]
    environment = os.environ | marked()
    run = subprocess.Popen(
        line, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        until(lambda: len(deaf()) == workers)
        if sent == signal.SIGINT:
            os.killpg(run.pid, sent)
        else:
            run.send_signal(sent)
        assert run.wait(60) == -sent
        assert left_running() == []
        assert run.stderr.read().count("Traceback") == (sent == signal.SIGINT)  # the run's own
    finally:
        for number in started_here():
            os.kill(number, signal.SIGKILL)


@slow
def test_a_comparison_is_run_kept_and_gone_on_with(table, tmp_path, monkeypatch):
    file, run = tmp_path / "small.toml", tmp_path / "run"
    small = {"ways": ["ad-psgd ring"], "closer": [], "learners": [1, 2]}
    few = {"simulated": {"learners": [1, 8]}}
    file.write_text(tomli_w.dumps(table | {"parallel": {}, "comparison": small | few}))
    line = ["run", str(file), "--out", str(run)]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0 and "simulated" in done.output
    found = json.loads((run / "results.json").read_text())
    assert [row["row"] for row in found["table"]] == ["allreduce.1", "ad-psgd-ring.2"]
    assert len(list((run / "cells").glob("*.seed-?.json"))) == 4
    timing = json.loads((run / "timing.json").read_text())
    assert {cell["cell"] for cell in timing["cells"]} == {
        f"{row}.seed-{seed}" for row in ("allreduce.1", "ad-psgd-ring.2") for seed in (0, 1)
    }
    # What is finished is not learned again.
    (run / "cells" / "ad-psgd-ring.2.seed-1.json").unlink()
    learned = []
    finish = cells_of.finish
    monkeypatch.setattr(
        cells_of, "finish", lambda *given: learned.append(given[2].name) or finish(*given)
    )
    again = CliRunner().invoke(app, [*line, "--resume"], catch_exceptions=False)
    assert again.exit_code == 0 and learned == ["ad-psgd-ring.2.seed-1"]
    after = json.loads((run / "results.json").read_text())["table"]
    assert after[0] == found["table"][0]
    assert after[1]["seeds"][0] == found["table"][1]["seeds"][0]


def test_a_row_that_diverges_hears_nothing_and_the_first_one_is_an_error(
    settings, task, tmp_path, monkeypatch
):
    def diverge(*given):
        raise DivergedError("no number")

    monkeypatch.setattr(cells_of.cell, "train", diverge)
    run = RunFolder(tmp_path)
    (tmp_path / "cells").mkdir()
    first = cells_of.Cell(settings, 0, "first")
    with pytest.raises(DivergedError):
        cells_of.finish(None, task, first, run, None)
    assert not list(tmp_path.glob("cells/*"))
    other = first._replace(name="other", compared=True)
    cells_of.finish(None, task, other, run, None)
    kept = json.loads((tmp_path / "cells" / "other.json").read_text())
    assert kept["errors"] == kept["words"] and kept["diverged"] == "no number"
    assert sum(map(len, kept["words"].values())) == 12
    assert json.loads((tmp_path / "cells" / "other.timing.json").read_text())["epochs"] == []
    assert cells_of.unfinished([first, other], run) == [first]
    other.timing(run).unlink()
    assert cells_of.unfinished([first, other], run) == [first, other]


def test_a_misspelt_way_is_refused(table, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(table | {"comparison": {"ways": ["adpsgd"]}}))
    with pytest.raises(ConfigError, match=r"comparison\.ways\.0: .*'adpsgd'"):
        load(file)
