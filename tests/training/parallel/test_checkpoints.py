"""A learner's checkpoints are written beside its next epoch: what is there when, and what in it."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from ray import cloudpickle

from fedspeech.config import DataParallelConfig
from fedspeech.errors import DiskError, RunError
from fedspeech.tensors import sha256
from fedspeech.training import checkpoint
from fedspeech.training.parallel import learner as learners
from fedspeech.training.parallel.group import LOOPBACK, Seat, serve
from fedspeech.training.parallel.learner import Ended, Learner, Order, Training
from fedspeech.training.parallel.method import flat

EPOCHS = 3


@pytest.fixture
def alone(tone_corpus, tmp_path, monkeypatch):
    """A learner that learns alone, in this process."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("FEDSPEECH_CACHE", str(tmp_path / "cache"))
    table = {
        "corpus": {"path": str(tone_corpus(tmp_path / "tones", 2, rounds=1))},
        "test": {"speakers": 1},
        "features": {"kind": "log-mel", "dimension": 8},
        "units": {"kind": "words"},
        "model": {"name": "tdnn-tiny"},
        "training": {"epochs": EPOCHS, "batch_size": 4, "augmentation": {"speeds": [1.0]}},
        "parallel": {"learners": 1},
    }
    settings = DataParallelConfig.model_validate(table)
    threads = torch.get_num_threads()
    learner = Learner(0, settings)
    training = Training(settings, 0, tmp_path, "one")
    learner.prepare(training, learner._task.fingerprint(settings, 0))
    store, port = serve()
    yield learner, training, learner.learn(Order(Seat(0, (0,), "one"), (LOOPBACK, port), 0, None))
    torch.set_num_threads(threads)
    del store


@pytest.fixture
def slow(monkeypatch):
    """Writing takes longer than an epoch; what it does, in order."""
    writes, whole = [], checkpoint.write_whole

    def write(path, save):
        writes.append(f"begins {path.name}")
        time.sleep(0.4)
        whole(path, save)
        writes.append(f"ends {path.name}")

    monkeypatch.setattr(checkpoint, "write_whole", write)
    return writes


def test_what_was_told_of_is_kept_before_the_next_epoch_is_told_of(alone, slow):
    learner, training, told = alone
    models = {}
    for item in told:
        if isinstance(item, Ended):
            break
        assert not item.epoch or training.checkpoint(0, item.epoch).exists()
        models[item.epoch + 1] = {name: each.clone() for name, each in learner.model().items()}
    assert sorted(models) == [1, 2, 3] and item.lost is None
    for epoch, model in models.items():
        learner._begin(Order(None, None, 0, epoch))
        for name, tensor in learner.model().items():
            assert torch.equal(tensor, model[name])
    assert len(slow) == 2 * EPOCHS
    assert all(slow[i].startswith("begins") for i in range(0, len(slow), 2))


def test_a_learner_says_how_an_epoch_comes_on(alone, monkeypatch):
    """After each part here, of two in an epoch of six utterances; no report lacks one of them."""
    monkeypatch.setattr(learners, "TELL_SECONDS", 0.0)
    *reports, _ = alone[2]
    for epoch in range(EPOCHS):
        of_epoch = [item for item in reports if item.epoch == epoch]
        assert [item.over for item in of_epoch] == [False, False, True]
        first, second, whole = (item.measured.utterances for item in of_epoch)
        assert 0 < first < second == whole == 6
    assert len(reports) == 3 * EPOCHS


def test_it_is_the_state_that_there_was_and_not_the_one_that_there_is(alone, monkeypatch):
    learner, training, _ = alone
    loop, path, gate = learner._loop, training.checkpoint(0, 1), threading.Event()
    whole = checkpoint.write_whole
    monkeypatch.setattr(checkpoint, "write_whole", lambda *a: (gate.wait(), whole(*a)))
    loop._set(0.1, 0.0)
    for parameter in loop.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    loop.optimizer.step()
    stepped = [p.detach().clone() for p in loop.model.parameters()]
    moments = loop.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    kept = {"latest": torch.ones(3), "steps": 2}
    learner._writer.save(path, loop, method=kept)
    loop.optimizer.step()
    kept["latest"].zero_()
    assert not any(map(torch.equal, loop.model.parameters(), stepped))
    assert not path.exists()
    gate.set()
    learner._writer.wait()
    (found,) = checkpoint.load(path, loop, "method")
    assert found["steps"] == 2 and found["latest"].tolist() == [1.0, 1.0, 1.0]
    assert all(map(torch.equal, loop.model.parameters(), stepped))
    assert torch.equal(loop.optimizer.state_dict()["state"][0]["exp_avg"], moments)


@pytest.mark.parametrize(
    ("method", "there", "begins_with"),
    [
        ("ring", [0, 2, 3], [0, 0, 2, 3]),
        ("ring", [3], [3, 3, 3, 3]),
        ("hierarchical", [0, 1, 3], [0, 0, 3, 3]),  # also where the second has one of its own
        ("hierarchical", [1], [1, 1, 1, 1]),
    ],
)
def test_learners_of_a_node_begin_with_the_same_checkpoint(
    alone, monkeypatch, method, there, begins_with
):
    learner, training, _ = alone
    table = training.settings.model_dump(mode="json") | {
        "parallel": {"method": method, "learners": 4}
    }
    other = training._replace(settings=DataParallelConfig.model_validate(table))
    for number in there:
        path = other.checkpoint(number, 1)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = []
    monkeypatch.setattr(checkpoint, "load", lambda path, *_: [found.append(path) or {}])
    learner._training = other
    for learner._number in range(4):
        learner._begin(Order(Seat(learner._number, (0, 1, 2, 3), "one"), None, 0, 1))
    assert found == [other.checkpoint(number, 1) for number in begins_with]


def test_learners_of_several_machines_compute_alike_or_not_at_all(alone, monkeypatch):
    """But for a server, which computes no gradients."""
    learner, training, _ = alone
    store, _ = serve()
    group = SimpleNamespace(store=store)
    learner._agree(group)
    learner._agree(group)
    monkeypatch.setattr(learners, "computes", lambda precisions: f"on cpu in {precisions[0]}!")
    told = r"learner 0 on \S+ computes on cpu in auto!, another one on cpu in (bf16|fp32); training"
    with pytest.raises(RunError, match=told):
        learner._agree(group)
    learner._number = training.settings.parallel.learners
    learner._agree(group)


def test_who_joins_takes_over_what_another_learner_has(alone):
    """Also where that one has all parameters in one vector: it is not sent for each of them."""
    learner, training, _ = alone
    flat(learner._loop.model)
    learner._loop._set(0.1, 0.0)
    for parameter in learner._loop.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner._loop.optimizer.step()
    learner._kept, learner._epoch = {"steps": 3}, 2
    sent = cloudpickle.dumps(learner.state())
    size = sum(tensor.nbytes for tensor in learner.model().values())
    assert len(sent) < 3.5 * size  # the model and Adam's two moments
    other = Learner(0, training.settings)
    other.prepare(training, other._task.fingerprint(training.settings, 0))
    other.adopt(cloudpickle.loads(sent))
    assert sha256(other.model()) == sha256(learner.model())
    mine, theirs = (each._loop.optimizer.state_dict()["state"] for each in (learner, other))
    assert torch.equal(mine[0]["exp_avg"], theirs[0]["exp_avg"])
    assert (other._kept, other._epoch) == ({"steps": 3}, 2)


@pytest.mark.parametrize(
    ("generation", "comes_back", "cut"),
    [("one/1", False, 1), ("one/1", True, 0), ("one/0", False, 0)],
)
def test_a_learner_that_does_not_come_back_is_cut_off(monkeypatch, generation, comes_back, cut):
    """It waits for a machine that has gone without a word; not where another group is there."""
    monkeypatch.setattr(learners, "CUT_SECONDS", 0.2)
    learner, cuts = Learner.__new__(Learner), []
    learner._stopped, learner._generation, learner._back = {}, "one/1", threading.Event()
    learner._group = SimpleNamespace(cut=lambda: cuts.append(1))
    if comes_back:
        threading.Timer(0.05, learner._back.set).start()
    learner.stop(generation)
    assert learner._stopped[generation].is_set() and len(cuts) == cut


def test_a_checkpoint_that_cannot_be_written_ends_the_training(alone):
    learner, training, told = alone
    (training.run / "cells").write_text("no folder")
    assert next(told).epoch == 0
    with pytest.raises(DiskError, match=r"cannot write .*learner-0\.epoch-1\.checkpoint"):
        next(told)
    assert not torch.distributed.is_initialized()
    learner._writer.wait()  # it is told once
