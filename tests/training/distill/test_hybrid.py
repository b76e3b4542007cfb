"""Teacher and student cut into modules, and the model that is made of both."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedspeech import seeding
from fedspeech.config.distillation import Cut, ModuleSettings
from fedspeech.errors import ConfigError
from fedspeech.training.criteria import rnnt
from fedspeech.training.distill.hybrid import Hybrid, inherit
from fedspeech.training.distill.modules import OWN, cut

LENGTHS = torch.tensor([30, 24])
REFERENCES = [[1, 2, 1], [3]]


@pytest.fixture
def speech() -> torch.Tensor:
    return torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hybrid(teacher, student, halved) -> Hybrid:
    inherit(teacher, student)
    return Hybrid(teacher, student, cut(teacher, student, halved))


class Scripted:
    """Draws that are written down: below the rate of 0.5 for a module of the student."""

    def __init__(self, ours: list[bool]) -> None:
        self._left = iter(ours)

    def random(self, count: int) -> np.ndarray:
        return np.array([0.2 if next(self._left) else 0.7 for _ in range(count)])


def choose(hybrid: Hybrid, ours: list[bool]) -> None:
    hybrid.choose(0.5, Scripted(ours))


def run(model, speech) -> tuple[torch.Tensor, torch.Tensor]:
    encoded, _ = model(speech, LENGTHS)
    predicted, _ = model.predict(torch.tensor([[0, 1, 2, 1], [0, 3, 0, 0]]))
    return encoded, predicted


def draw() -> np.random.Generator:
    return seeding.generator(0, 0, "", "choices")


def test_at_one_it_is_the_student_to_the_bit(hybrid, student, speech):
    for _ in range(20):
        hybrid.choose(1.0, draw())
        for found, wanted in zip(run(hybrid, speech), run(student, speech), strict=True):
            assert torch.equal(found, wanted)
    loss = rnnt.loss(hybrid, *hybrid(speech, LENGTHS), REFERENCES)
    assert torch.equal(loss, rnnt.loss(student, *student(speech, LENGTHS), REFERENCES))


def test_towards_zero_it_is_the_teacher(hybrid, teacher, speech):
    """Embedding, joint network and output layer started as the teacher's."""
    hybrid.choose(1e-300, draw())
    for found, wanted in zip(run(hybrid, speech), run(teacher, speech), strict=True):
        assert torch.equal(found, wanted)
    loss = rnnt.loss(hybrid, *hybrid(speech, LENGTHS), REFERENCES)
    assert torch.equal(loss, rnnt.loss(teacher, *teacher(speech, LENGTHS), REFERENCES))


def test_in_between_layers_of_both_follow_each_other(hybrid, teacher, student, speech):
    """By PyTorch's LSTM alone: the student's first, the teacher's next two, the student's last."""
    choose(hybrid, [True, False, True, False])
    x, _ = student.encoder[0](speech.reshape(2, 10, 24))
    x = x.reshape(2, 5, 24)
    for layer in (teacher.encoder[1], teacher.encoder[2], student.encoder[2]):
        x, _ = layer(x)
    y = student.embedding(torch.tensor([[0, 1, 2, 1], [0, 3, 0, 0]]))
    for layer in teacher.prediction:
        y, _ = layer(y)
    encoded, predicted = run(hybrid, speech)
    torch.testing.assert_close(encoded, student.encoded(x))
    torch.testing.assert_close(predicted, student.predicted(y))


def test_a_projection_stands_in_for_as_many_units(transducer, student, halved, speech):
    teacher = transducer(5, 2, seed=1, encoder_units=20, projection=12)
    hybrid = Hybrid(teacher, student, cut(teacher, student, halved))
    choose(hybrid, [True, False, True, False])
    x, _ = student.encoder[0](speech.reshape(2, 10, 24))
    x = x.reshape(2, 5, 24)
    for layer in (teacher.encoder[1], teacher.encoder[2], student.encoder[2]):
        x, _ = layer(x)
    torch.testing.assert_close(hybrid(speech, LENGTHS)[0], student.encoded(x))
    with pytest.raises(ConfigError, match="gives 12 in the teacher, takes 24 and gives 7 in the"):
        cut(teacher, transducer(3, 1, seed=2, projection=7), halved)


def test_modules_are_chosen_independently_with_the_probability_that_is_asked_for(hybrid):
    generator, rounds = draw(), 4000
    chosen = []
    for _ in range(rounds):
        hybrid.choose(0.3, generator)
        chosen.append([ours for some in hybrid._ours.values() for ours in some])
    found = np.array(chosen)
    assert found.shape == (rounds, 4)
    np.testing.assert_allclose(found.mean(0), 0.3, atol=0.03)
    for one, two in itertools.combinations(found.T, 2):
        assert (one & two).mean() == pytest.approx(0.09, abs=0.02)


@pytest.mark.parametrize("frozen", [True, False], ids=["strategy 2", "strategy 1"])
@pytest.mark.parametrize("ours", list(itertools.product([True, False], repeat=4)))
def test_gradients_reach_the_modules_that_were_used_and_no_others(
    hybrid, teacher, student, speech, frozen, ours
):
    teacher.requires_grad_(not frozen)
    choose(hybrid, list(ours))
    rnnt.loss(hybrid, *hybrid(speech, LENGTHS), REFERENCES).sum().backward()
    mine = [(student.encoder, (0,)), (student.encoder, (1,)), (student.encoder, (2,))]
    theirs = [(teacher.encoder, (0,)), (teacher.encoder, (1, 2)), (teacher.encoder, (3, 4))]
    mine.append((student.prediction, (0,)))
    theirs.append((teacher.prediction, (0, 1)))
    for used, (own, own_layers), (its, its_layers) in zip(ours, mine, theirs, strict=True):
        for place in own_layers:
            assert all((p.grad is not None) == used for p in own[place].parameters())
        for place in its_layers:
            learns = not used and not frozen
            assert all((p.grad is not None) == learns for p in its[place].parameters())
    for name in OWN:
        assert all(p.grad is not None for p in getattr(student, name).parameters())
        assert all(p.grad is None for p in getattr(teacher, name).parameters())


def test_the_student_starts_with_the_teachers_embedding_and_joint_network(teacher, student):
    layers = [layer.weight_ih_l0.detach().clone() for layer in student.encoder]
    inherit(teacher, student)
    for name in OWN:
        for ours, theirs in zip(
            getattr(student, name).parameters(), getattr(teacher, name).parameters(), strict=True
        ):
            assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    for before, layer in zip(layers, student.encoder, strict=True):
        assert torch.equal(before, layer.weight_ih_l0)


def settings(encoder, prediction=((2,), (1,))) -> ModuleSettings:
    pairs = {"encoder": encoder, "prediction": prediction}
    return ModuleSettings.model_validate(
        {name: dict(zip(("teacher", "student"), pair, strict=True)) for name, pair in pairs.items()}
    )


def test_as_many_modules_in_both_are_expected_and_both_are_shown():
    told = r"2 in the teacher \[1, 4\] and 3 in the student \[1, 1, 1\]"
    with pytest.raises(ValidationError, match=told):
        Cut.model_validate({"teacher": [1, 4], "student": [1, 1, 1]})
    with pytest.raises(ValidationError, match="at least 1 item"):
        Cut.model_validate({"teacher": [], "student": []})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            settings(((1, 3), (1, 2))),
            r"modules\.encoder: expected all layers of both models, found \[1, 3\] of 5 in the "
            r"teacher and \[1, 2\] of 3 in the student",
        ),
        (
            settings(((1, 4), (1, 1))),
            r"found \[1, 4\] of 5 in the teacher and \[1, 1\] of 3 in the student",
        ),
        (
            settings(((1, 4), (1, 2)), ((1,), (1,))),
            r"modules\.prediction: .*\[1\] of 2 in the teacher and \[1\] of 1 in the student",
        ),
        (
            # Two steps are joined behind the first layer: the student's second one sees both.
            settings(((2, 3), (1, 2))),
            r"modules\.encoder: module 2 of 2 takes 12 values and gives 12 in the teacher, takes "
            "24 and gives 12 in the student",
        ),
    ],
)
def test_modules_that_do_not_match_are_told_with_both_sides(teacher, student, wrong, told):
    with pytest.raises(ConfigError, match=told):
        cut(teacher, student, wrong)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (
            {"encoder_units": 16},
            "takes 24 values and gives 12 in the teacher, takes 24 and gives 16",
        ),
        ({"prediction_units": 9}, r"modules\.prediction: module 1 of 1 takes 6 values and gives 7"),
        ({"embedding": 5}, "modules: embedding is 6 in the teacher, 5 in the student"),
        ({"joint": 9}, "modules: joint is 10 in the teacher, 9 in the student"),
        ({"subsampling": 3}, "modules: subsampling is 6 in the teacher, 3 in the student"),
        ({"stacking": 1}, "modules: stacking is 3 in the teacher, 1 in the student"),
    ],
)
def test_other_sizes_are_told_with_both_sides(transducer, teacher, halved, sizes, told):
    with pytest.raises(ConfigError, match=told):
        cut(teacher, transducer(3, 1, seed=2, **sizes), halved)
