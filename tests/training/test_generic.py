import math
import signal
from types import SimpleNamespace

import pytest
import torch

from fedspeech import evaluation, features, models
from fedspeech.config import dump
from fedspeech.errors import RunError
from fedspeech.tensors import sha256, state
from fedspeech.training import checkpoint, generic
from fedspeech.training.generic import Epoch, Trained

CHILD = """
import os, resource, signal, sys
from pathlib import Path
from fedspeech import config, corpus
from fedspeech.corpus.partition import partition
from fedspeech.errors import RunError
from fedspeech.training import generic

folder, what = Path(sys.argv[1]), sys.argv[2]
settings = config.load(folder / "settings.toml")
parts = partition(corpus.load(settings.corpus), settings.partition)

def report(epoch):
    if what == f"kill after {epoch.number}":
        os.kill(os.getpid(), signal.SIGKILL)

if what == "no space":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    generic.train(parts, settings, folder / "features", folder / "checkpoint", report)
except RunError as error:
    print(error)
"""


@pytest.fixture
def train(parts, tmp_path):
    """Train in this process with files under tmp_path; the epochs as they were reported."""

    def run(config, checkpoint: str = "checkpoint") -> tuple[Trained, list[Epoch]]:
        reported: list[Epoch] = []
        found = generic.train(
            parts, config, tmp_path / "features", tmp_path / checkpoint, reported.append
        )
        return found, reported

    return run


def test_two_trainings_give_the_same_bytes(train, settings):
    torch.manual_seed(1)
    first, reported = train(settings(), "one")
    torch.manual_seed(2)
    second, _ = train(settings(), "two")
    assert sha256(first.model) == sha256(second.model)
    assert first.epochs == second.epochs == reported
    assert [epoch.number for epoch in reported] == [0, 1, 2]
    assert first.parameters == models.parameters(first.description.empty())
    assert sha256(train(settings(batch_size=9), "three")[0].model) != sha256(first.model)


@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_killed_training_goes_on_as_if_it_had_never_stopped(
    train, settings, child, tmp_path, killed_after
):
    config = settings()
    (tmp_path / "settings.toml").write_text(dump(config), encoding="utf-8")
    done = child(CHILD, tmp_path, f"kill after {killed_after}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    # The checkpoint of the epoch that was reported last was not written any more.
    assert (tmp_path / "checkpoint").exists() == (killed_after > 0)
    resumed, reported = train(config)
    assert [epoch.number for epoch in reported] == [0, 1, 2][killed_after:]
    whole, _ = train(config, "undisturbed")
    assert sha256(resumed.model) == sha256(whole.model)
    assert resumed.epochs == whole.epochs


def test_a_finished_training_is_not_trained_again(train, settings):
    first, _ = train(settings())
    again, reported = train(settings())
    assert reported == []
    assert sha256(again.model) == sha256(first.model) and again.epochs == first.epochs


def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(settings, child, tmp_path):
    (tmp_path / "settings.toml").write_text(dump(settings()), encoding="utf-8")
    done = child(CHILD, tmp_path, "no space")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path / 'checkpoint'}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "settings.toml"]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "nothing", "a bit"])
def test_a_damaged_checkpoint_is_told(train, settings, tmp_path, damage):
    path = tmp_path / "checkpoint"
    train(settings(epochs=1))
    content = bytearray(path.read_bytes())
    half = len(content) // 2  # somewhere in the weights
    content[half] ^= 16
    path.write_bytes(
        {"truncate": content[:half], "garbage": b"garbage", "nothing": b"", "a bit": content}[
            damage
        ]
    )
    with pytest.raises(RunError, match="checkpoint: damaged; without it the training begins anew"):
        train(settings())


def test_a_checkpoint_of_another_training_is_told(train, settings, tmp_path):
    path = tmp_path / "checkpoint"
    train(settings(epochs=1))
    loop = SimpleNamespace(model=torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match="checkpoint: not a checkpoint of this training: "):
        checkpoint.load(path, loop)


def test_the_best_epoch_is_kept_and_patience_ends_the_training(train, settings, parts, tmp_path):
    # At this rate nothing is learned for long: an early epoch stays the best.
    config = settings(epochs=30, patience=3, learning_rate=0.3, warmup=0.0)
    found, reported = train(config)
    rates = [epoch.word_error_rate for epoch in reported]
    best = rates.index(min(rates))
    assert len(reported) == best + 1 + 3 < 30
    run = generic._Run.start(parts, config, tmp_path / "features")
    for _ in range(best + 1):
        run.next_epoch()
    assert sha256(found.model) == sha256(state(run.loop.model))


@pytest.mark.parametrize(("batch_size", "loss"), [(4, "nan"), (1000, r"[\d.]+")])
def test_a_training_that_diverges_is_told(train, settings, batch_size, loss):
    """Where one update is all, the loss was still a number before it."""
    config = settings(batch_size=batch_size, learning_rate=1e38, warmup=0.0, epochs=1)
    told = rf"training of G diverged in epoch 1 \(loss {loss}\); generic\.learning_rate = 1e\+38"
    with pytest.raises(RunError, match=told):
        train(config)


def test_the_error_rate_is_that_of_the_development_speakers(train, settings, parts, tmp_path):
    found, reported = train(settings(epochs=2))
    assert {cut.supervisions[0].speaker for cut in parts.development} == {"t02"}
    assert {cut.supervisions[0].speaker for cut in parts.generic} == {"t00", "t01"}
    assert all(math.isfinite(epoch.loss) and epoch.loss > 0 for epoch in reported)
    speech = features.prepare(
        list(parts.development), found.description.features, (), tmp_path / "mine"
    )
    heard = evaluation.transcribe(
        found.description.module(found.model),
        speech,
        found.description.features,
        found.description.units,
    )
    counts = evaluation.count([utterance.text for utterance in speech], heard)
    rate = 100 * counts.errors.sum() / counts.words.sum()
    assert min(epoch.word_error_rate for epoch in reported) == pytest.approx(rate)


def test_the_number_of_threads_is_set_back(train, settings):
    seen = []
    before = torch.get_num_threads()
    config = settings(epochs=1, threads=2)
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    try:
        train(config)
    finally:
        hook.remove()
    assert set(seen) == {2} and torch.get_num_threads() == before


def test_memory_that_runs_out_while_g_is_trained_is_told(train, settings, monkeypatch):
    def next_epoch(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generic._Run, "next_epoch", next_epoch)
    with pytest.raises(
        RunError, match=r"^G does not fit the memory .+ smaller generic\.batch_size"
    ):
        train(settings())
