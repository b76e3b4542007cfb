"""Everybody does the same work, and what is measured is told as it is."""

import numpy as np
import pytest
import torch
from slow import slow

from experiments.benchmarks import fine_tuning, scaling, start_to_end, workload
from experiments.benchmarks.contestants import OURS, OURS_COHORT, PLAIN, Contestant, plain
from experiments.benchmarks.harness import Setting
from experiments.benchmarks.workload import Job
from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings, TrainPart
from fedspeech.corpus import partition


@pytest.fixture(scope="session")
def clients(tone_corpus, tmp_path_factory):
    """Three speakers with 20 utterances in train_s: 2 updates in an epoch, 1 on the first 80 %."""
    folder = tone_corpus(tmp_path_factory.mktemp("tones"), 3, rounds=4, per_round=6)
    speech = corpus.load(CorpusSettings(path=str(folder)))
    part = TrainPart(fraction=20 / 24)
    cuts = partition.by_speaker(speech)
    return [partition.client(speaker, cuts[speaker], part) for speaker in sorted(cuts)]


@pytest.fixture
def held(clients, tmp_path):
    return workload.prepare(tmp_path / "workload", clients, 0, ["0.1M"])


def test_everybody_makes_the_same_number_of_updates(held):
    job = Job("0.1M", 3, 2, 0)
    assert held.updates(job) == 2 * (2 + 1)
    about, generic = held.description("0.1M"), held.generic("0.1M")
    steps = []
    for speech in held.plain(1).both_parts():
        module = about.module(generic)
        optimizer = plain.train(module, speech, job.epochs)
        steps.append(int(optimizer.state[next(module.parameters())]["step"]))
    assert steps == [4, 2]


def test_the_models_have_the_sizes_of_their_names():
    for size, name in workload.SIZES.items():
        with torch.device("meta"):
            module = workload.MODELS[name].build(40, 25)
        number = sum(parameter.numel() for parameter in module.parameters())
        assert number == pytest.approx(1e6 * float(size[:-1]), rel=0.1)


def test_plain_features_are_those_of_the_device(held, clients):
    speech = held.plain(0)
    assert len(speech.features) == len(speech.targets) == 20
    frames = torch.cat(speech.features)
    # the speaker's own mean and variance were taken out
    assert frames.mean(0).abs().max() < 1e-4
    assert torch.allclose(frames.square().mean(0), torch.ones(40), atol=1e-3)
    batch = plain.collate(list(zip(*speech.part([0, 1]), strict=True)))
    assert batch[1].tolist() == [len(rows) for rows in speech.features[:2]]
    assert batch[2].tolist() == speech.targets[0] + speech.targets[1]


def test_the_plain_loop_and_ours_learn_the_same_thing(held):
    """Neither varies the speech: both bring the loss of the same batch down from the same model."""
    job = Job("0.1M", 1, 20, 0)
    speech, about = held.plain(0), held.description("0.1M")
    batch = plain.collate(list(zip(*speech, strict=True)))

    def loss(model):
        module = about.module(dict(sorted(model.items()))).eval()
        with torch.no_grad():
            return float(plain.loss(module, batch))

    before = loss(held.generic("0.1M"))
    torch.manual_seed(0)
    after = [loss(plain.fine_tune(held, job, 0)), loss(plain.fine_tune_our_way(held, job, 0))]
    assert max(after) < before / 2


def raise_at_once(channel, folder, argument):
    raise RuntimeError("lost its way")


@slow
def test_throughput_of_plain_loops_and_of_our_engine(held, tmp_path):
    lost = Contestant("lost", raise_at_once, None)
    job = Job("0.1M", 2, 1, 0)
    plan = fine_tuning.Plan((job,), 1, field=(PLAIN, OURS, OURS_COHORT, lost))
    rows = list(fine_tuning.throughput(Setting(tmp_path / "field"), plan, held))
    first, second, cohort, third = rows
    contestants = [PLAIN.name, OURS.name, OURS_COHORT.name, "lost"]
    assert [row["contestant"] for row in rows] == contestants
    assert {row["updates per speaker"] for row in (first, second, cohort)} == {3}
    assert first["/ plain's speed"]["values"] == [1.0]
    speeds = [np.array(row["speakers per second"]["values"]) for row in (first, second)]
    assert second["/ plain's speed"]["values"] == pytest.approx(list(speeds[1] / speeds[0]))
    assert len(second["start-up, s"]["values"]) == 1
    assert third["failed"] == "RuntimeError: lost its way" and "speakers per second" not in third
    assert [path.name for path in (tmp_path / "field").iterdir()] == ["logs"]


def test_start_to_end(held, tmp_path):
    plan = start_to_end.Plan(Job("0.1M", 2, 1, 0), 1, runners=(PLAIN,))
    (row,) = start_to_end.race(Setting(tmp_path / "race"), plan, held)
    assert row["speakers"] == 2 and len(row["seconds"]["values"]) == 1
    parts = [row[part]["median"] for part in row if part.endswith(", s")]
    assert len(parts) == 3 and sum(parts) == pytest.approx(row["seconds"]["median"])
    assert not (tmp_path / "race" / "race").exists()


def test_scaling_has_its_fixed_number_of_speakers():
    assert set(scaling.FULL.workers) >= {1, 2} and scaling.FULL.at in scaling.FULL.speakers
