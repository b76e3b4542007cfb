"""A transducer where a TDNN was: nothing that trains, mixes or judges tells them apart."""

import dataclasses
import logging

import pytest
import torch

from fedspeech import evaluation, seeding, tensors
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.config.training import Optimization, PersonalSettings
from fedspeech.diff.learned_hash import HashDiff
from fedspeech.diff.learned_sparse import CubicSchedule, SparseDiff
from fedspeech.errors import CorpusError
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import distance, sha256, state
from fedspeech.training import generic as generic_training
from fedspeech.training.course import Course, fitting
from fedspeech.training.loop import Loop
from fedspeech.training.personal import Tuning, fine_tune, fine_tune_together
from fedspeech.units import learn

NAME = (0, 1, "t00", "personalize")
SETTINGS = PersonalSettings(epochs=2, batch_size=4)


@pytest.fixture(scope="module")
def description(spoken) -> ModelDescription:
    units = learn([utterance.text for utterance in spoken], UnitSettings(kind="words"))
    return ModelDescription("rnnt-tiny", FeatureSettings(), units)


@pytest.fixture(scope="module")
def generic(description):
    with seeding.scoped(0, 0, "", "initialization"):
        return state(description.empty())


@pytest.fixture(scope="module")
def mine(spoken):
    return [utterance for utterance in spoken if utterance.speaker == "t00"]


def chatty(utterance):
    """More words than there are frames, at any speed."""
    return dataclasses.replace(utterance, text="ba " * (len(utterance.log_mel[0.9]) + 1))


def test_it_learns_to_hear_what_it_was_taught(description, generic, spoken):
    settings = Optimization(
        epochs=25, batch_size=6, learning_rate=1e-2, final_learning_rate=1e-3, clean=1.0
    )
    course = Course(settings, description.features, description.units, spoken, NAME)
    loop = Loop(description.module(generic), course)
    losses = [loop.epoch(number) for number in range(settings.epochs)]
    counts = evaluation.word_errors(loop.model, spoken, description.features, description.units)
    print(f"losses {losses[0]:.2f} … {losses[-1]:.3f}, {counts.errors.sum()} errors")
    assert losses[-1] < 0.1 * losses[0]
    assert counts.errors.sum() <= 0.1 * counts.words.sum()


def test_an_empty_transcript_is_learned_as_silence(description, generic, spoken):
    silent = dataclasses.replace(spoken[0], text="")
    settings = Optimization(
        epochs=12, batch_size=2, learning_rate=3e-3, final_learning_rate=3e-3, clean=1.0
    )
    course = Course(settings, description.features, description.units, [silent, spoken[1]], NAME)
    loop = Loop(description.module(generic), course)
    losses = [loop.epoch(number) for number in range(settings.epochs)]
    assert losses[-1] < losses[0]
    heard = evaluation.transcribe(loop.model, [silent], description.features, description.units)
    assert heard == [""]


def test_what_has_more_units_than_frames_is_skipped_and_counted(description, generic, mine):
    found = fine_tune(generic, description, SETTINGS, [chatty(mine[0]), *mine[1:]], NAME)
    without = fine_tune(generic, description, SETTINGS, mine[1:], NAME)
    assert (found.skipped, without.skipped) == (1, 0)
    assert sha256(found.model) == sha256(without.model) != sha256(generic)
    with pytest.raises(CorpusError, match="have too many units for their length"):
        fine_tune(generic, description, SETTINGS, [chatty(mine[0])], NAME)


@pytest.mark.parametrize(("name", "most"), [("rnnt-tiny", 13), ("tdnn-tiny", 5)])
def test_a_transducer_may_spell_a_unit_in_each_frame_and_ctc_in_each_step(
    description, mine, name, most
):
    about = dataclasses.replace(description, name=name)
    utterance = dataclasses.replace(mine[0], log_mel={1.0: torch.zeros(13, 40)})
    said = [dataclasses.replace(utterance, text=" ".join(["ba"] * n)) for n in (most, most + 1)]
    assert fitting(said, about) == [said[0]]


def test_more_words_than_steps_are_learned(description, generic, spoken):
    """Six words in two steps of 60 ms."""
    brief = dataclasses.replace(
        spoken[0], log_mel={s: mel[:12] for s, mel in spoken[0].log_mel.items()}
    )
    said = [dataclasses.replace(brief, text="ba di gu ke lo mi"), spoken[1]]
    settings = Optimization(
        epochs=60, batch_size=2, learning_rate=1e-2, final_learning_rate=1e-3, clean=1.0
    )
    course = Course(settings, description.features, description.units, said, NAME)
    loop = Loop(description.module(generic), course)
    for number in range(settings.epochs):
        loop.epoch(number)
    heard = evaluation.transcribe(loop.model, said, description.features, description.units)
    assert heard == [one.text for one in said]


def test_utterances_for_g_that_do_not_fit_are_counted(description, spoken, caplog):
    with caplog.at_level(logging.WARNING, "fedspeech"):
        taught = generic_training._taught([*spoken[:3], chatty(spoken[3])], description)
    assert taught == spoken[:3]
    assert "G skips 1 utterances: they have too many units for their length" in caplog.text


def test_many_speakers_are_fine_tuned_together_as_each_is_alone(description, generic, spoken):
    settings = SETTINGS.model_copy(update={"precision": "fp32"})
    speakers = ["t00", "t01"]
    said = [[u for u in spoken if u.speaker == speaker] for speaker in speakers]
    said[1] = [chatty(said[1][0]), *said[1][1:]]
    said.append([dataclasses.replace(spoken[0], text="nobody spells this")])
    tunings = [
        Tuning(generic, own, (0, 1, f"s{number}", "personalize")) for number, own in enumerate(said)
    ]
    *found, nobody = fine_tune_together(description, settings, tunings)
    assert nobody is None
    for ours, each in zip(found, tunings[:-1], strict=True):
        alone = fine_tune(generic, description, settings, each.utterances, each.name)
        assert ours.skipped == alone.skipped
        assert ours.losses == pytest.approx(alone.losses, rel=1e-4)
        apart = distance(ours.model, alone.model)
        assert apart < 0.02 * distance(alone.model, generic)


def test_a_mix_lies_between_its_models_and_is_judged_as_any_model(description, generic, mine):
    personal = fine_tune(generic, description, SETTINGS, mine, NAME).model
    mixed = {name: 0.5 * personal[name] + 0.5 * generic[name] for name in generic}
    assert distance(mixed, generic) == pytest.approx(distance(personal, generic) / 2, rel=1e-3)
    (found,) = evaluation.word_errors_of([mixed], description, mine)
    module = description.module(mixed)
    wanted = evaluation.word_errors(module, mine, description.features, description.units)
    assert found.errors.tolist() == wanted.errors.tolist()


def test_a_file_keeps_it(description, generic, tmp_path):
    tensors.write(tmp_path / "g.safetensors", generic)
    description.write(tmp_path / "g.json")
    module = description.module(tensors.read(tmp_path / "g.safetensors"))
    assert sha256(state(module)) == sha256(generic)


@pytest.mark.parametrize("kind", ["sparse", "hash"])
def test_a_diff_is_learned_on_top_of_it(description, generic, mine, kind):
    module = description.module(generic)
    if kind == "sparse":
        learned: SparseDiff | HashDiff = SparseDiff(module, CubicSchedule(0.9, 0, 1))
    else:
        learned = HashDiff(module, 0.1, 3)
    course = Course(SETTINGS, description.features, description.units, mine, NAME)
    Loop(module, course).epoch(0)
    if isinstance(learned, SparseDiff):
        learned.prune(1)
    new = learned.state()
    assert sorted(new) == sorted(generic)
    moved = {name for name in generic if not torch.equal(new[name], generic[name])}
    assert {"encoder.0.weight_hh_l0", "prediction.0.weight_ih_l0", "output.weight"} <= moved
    if kind == "sparse":
        name = "encoder.1.weight_hh_l0"
        assert (new[name] != generic[name]).float().mean() < 0.15
    evaluated = evaluation.transcribe(module, mine, description.features, description.units)
    learned.remove()
    assert sha256(state(module)) == sha256(new)
    again = evaluation.transcribe(module, mine, description.features, description.units)
    assert again == evaluated
