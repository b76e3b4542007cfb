import dataclasses

import pytest
import torch

from fedspeech import seeding
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.config.training import PersonalSettings
from fedspeech.errors import CorpusError, ModelError
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import distance, sha256, state
from fedspeech.training.course import Course
from fedspeech.training.loop import Loop
from fedspeech.training.personal import fine_tune, pull_back, validation_split
from fedspeech.units import learn

NAME = (0, 1, "t00", "personalize")
SETTINGS = PersonalSettings(epochs=2, batch_size=4)


@pytest.fixture(scope="module")
def description(spoken) -> ModelDescription:
    units = learn([utterance.text for utterance in spoken], UnitSettings(kind="words"))
    return ModelDescription("tdnn-tiny", FeatureSettings(), units)


@pytest.fixture(scope="module")
def generic(description):
    with seeding.scoped(0, 0, "", "initialization"):
        return state(description.empty())


@pytest.fixture(scope="module")
def mine(spoken):
    return [utterance for utterance in spoken if utterance.speaker == "t00"]


def test_it_is_the_local_loop_from_the_given_start(description, generic, mine):
    before = sha256(generic)
    found = fine_tune(generic, description, SETTINGS, mine, NAME)
    course = Course(SETTINGS, description.features, description.units, mine, NAME)
    loop = Loop(description.module(generic), course)
    losses = [loop.epoch(0), loop.epoch(1)]
    assert sha256(generic) == before
    assert sha256(found.model) == sha256(state(loop.model)) != before
    assert (found.losses, found.skipped) == (losses, 0)
    assert distance(found.model, generic) > 0.1


def test_the_same_names_give_the_same_bytes_and_others_do_not(description, generic, mine):
    def tune(name) -> str:
        return sha256(fine_tune(generic, description, SETTINGS, mine, name).model)

    assert tune(NAME) == tune(NAME)
    assert tune(NAME) != tune((0, 1, "t00", "validate"))


def test_what_the_vocabulary_cannot_spell_is_skipped(description, generic, mine):
    strange = dataclasses.replace(mine[0], text="zebra")
    mixed = [strange, *mine[1:]]
    found = fine_tune(generic, description, SETTINGS, mixed, NAME)
    without = fine_tune(generic, description, SETTINGS, mine[1:], NAME)
    assert (found.skipped, without.skipped) == (1, 0)
    assert sha256(found.model) == sha256(without.model)
    for nothing in ([strange], []):
        with pytest.raises(CorpusError, match="the vocabulary spells none of this speaker's"):
            fine_tune(generic, description, SETTINGS, nothing, NAME)


def test_a_start_that_does_not_fit_is_told(description, generic, mine):
    start = {**generic, "output.bias": generic["output.bias"] * float("nan")}
    with pytest.raises(ModelError, match=r"tensor output.bias has values that are NaN"):
        fine_tune(start, description, SETTINGS, mine, NAME)


@pytest.mark.parametrize(
    ("count", "held_out"), [(1, 1), (2, 1), (5, 1), (7, 1), (8, 2), (10, 2), (280, 56)]
)
def test_the_last_fifth_judges(count, held_out):
    first, last = validation_split(list(range(count)))
    assert [*first, *last] == list(range(count))
    assert len(last) == held_out


# FedProx.


def test_the_proximal_term_adds_mu_times_the_way_from_the_start():
    module = torch.nn.Linear(3, 2)
    pull_back(module, mu=0.25)
    slopes = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    moves = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter += moves[name]
    loss = sum((parameter * slopes[name]).sum() for name, parameter in module.named_parameters())
    loss.backward()
    for name, parameter in module.named_parameters():
        expected = slopes[name] + 0.25 * moves[name]
        assert torch.allclose(parameter.grad, expected, atol=1e-6)


def test_a_larger_mu_keeps_the_model_nearer_to_its_start(description, generic, mine):
    def moved(mu: float) -> float:
        parameters = {name for name, _ in description.module(generic).named_parameters()}
        tuned = fine_tune(generic, description, SETTINGS, mine, NAME, mu).model
        return distance(
            {name: tuned[name] for name in parameters}, {name: generic[name] for name in parameters}
        )

    free = sha256(fine_tune(generic, description, SETTINGS, mine, NAME).model)
    assert sha256(fine_tune(generic, description, SETTINGS, mine, NAME, 0.0).model) == free
    assert moved(0.0) > 1.05 * moved(100.0)
