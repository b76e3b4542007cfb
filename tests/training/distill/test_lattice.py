"""Distillation over the lattice, beside plain numpy."""

import logging

import numpy as np
import pytest
import torch

from fedspeech import accelerator, seeding
from fedspeech.models.rnnt import RNNT, Shape
from fedspeech.training.criteria import rnnt
from fedspeech.training.distill import lattice

REFERENCES, LENGTHS = [[1, 2], [4], [3, 3, 1], [], [1, 2, 1, 2]], [5, 2, 20, 3, 3]
"""The third has more steps than a slice; the last one more units than steps."""
UNITS, JOINT = 6, 7


def model(seed: int, prediction: int, joint: int) -> RNNT:
    with seeding.scoped(seed, 0, "", "a model"):
        found = RNNT(
            4,
            UNITS,
            Shape(1, 6, prediction, 5, embedding=4, joint=joint, stacking=1, subsampling=1),
        )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(2)
        found.output.bias[0] = 0  # two models that expect almost nothing but blanks hardly differ
    return found


@pytest.fixture
def student() -> RNNT:
    return model(1, 1, JOINT)


@pytest.fixture
def teacher() -> RNNT:
    return model(2, 2, JOINT + 3).requires_grad_(False)


def heard(joint: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(LENGTHS), max(LENGTHS), joint, generator=draw)


@pytest.fixture
def both() -> tuple[torch.Tensor, torch.Tensor]:
    return heard(JOINT, 3).requires_grad_(), heard(JOINT + 3, 4)


def probabilities(model: RNNT, encoded: torch.Tensor, reference: list[int]) -> np.ndarray:
    """Of every unit in every cell of one utterance's lattice, float64."""
    predicted, _ = model.predict(torch.tensor([[0, *reference]]))
    joint = np.tanh((encoded[:, None] + predicted).detach().double().numpy())
    weight, bias = (p.detach().double().numpy() for p in model.output.parameters())
    logits = joint @ weight.T + bias
    return np.exp(logits) / np.exp(logits).sum(2, keepdims=True)


def brute_force(student, teacher, encoded, taught, reference) -> float:
    """The summed divergence of three classes, cell by cell; of two where no unit follows."""
    p, q = (
        probabilities(model, part, reference)
        for model, part in ((teacher, taught), (student, encoded))
    )
    total = 0.0
    for t in range(len(encoded)):
        for u in range(len(reference) + 1):
            classes = [[0], [k for k in range(1, UNITS) if [k] != reference[u : u + 1]]]
            if u < len(reference):
                classes.append([reference[u]])
            for members in classes:
                theirs, ours = p[t, u, members].sum(), q[t, u, members].sum()
                total += theirs * np.log(theirs / ours)
    return total


def divergences(student, teacher, both) -> list[float]:
    return [
        brute_force(student, teacher, encoded[:length], taught[:length], reference)
        for encoded, taught, length, reference in zip(*both, LENGTHS, REFERENCES, strict=True)
    ]


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1.0])
def test_the_loss_is_the_transducers_and_alpha_times_the_divergence(student, teacher, both, alpha):
    lengths = torch.tensor(LENGTHS)
    found = lattice.loss(student, teacher, alpha, both, lengths, REFERENCES)
    alone = rnnt.loss(student, both[0], lengths, REFERENCES).detach().numpy()
    wanted = alone + alpha * np.array(divergences(student, teacher, both))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach(), wanted, rtol=2e-5)
    assert min(divergences(student, teacher, both)) > 0.1


def test_a_teacher_that_agrees_adds_nothing(student, both):
    heard_twice = (both[0], both[0].detach())
    found = lattice.loss(student, student, 1.0, heard_twice, torch.tensor(LENGTHS), REFERENCES)
    alone = rnnt.loss(student, both[0], torch.tensor(LENGTHS), REFERENCES)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum() - alone.sum(), both[0])
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_gradients_are_those_of_finite_differences(student, teacher, both):
    """Of the divergence alone: that of the transducer's loss is tested where it is."""
    lengths, place, step = torch.tensor(LENGTHS), (2, 17), 1e-6

    def summed() -> torch.Tensor:
        found = lattice.loss(student, teacher, 1.0, both, lengths, REFERENCES)
        return (found - rnnt.loss(student, both[0], lengths, REFERENCES)).sum()

    parameters = [student.output.weight, student.predicted.weight, student.embedding.weight]
    encoded, *slopes = torch.autograd.grad(summed(), [both[0], *parameters])
    for unit in range(JOINT):
        ends = []
        for sign in (-1, 1):
            moved = both[0].detach().double().clone()
            moved[(*place, unit)] += sign * step
            ends.append(sum(divergences(student, teacher, (moved, both[1]))))
        assert encoded[(*place, unit)].item() == pytest.approx(
            (ends[1] - ends[0]) / (2 * step), rel=1e-3, abs=1e-4
        )
    for parameter, slope in zip(parameters, slopes, strict=True):
        most = np.unravel_index(int(slope.abs().argmax()), slope.shape)
        ends = []
        for sign in (-1, 2, -1):  # down, up, and back
            with torch.no_grad():
                parameter[most] += sign * 1e-3
            ends.append(sum(divergences(student, teacher, both)))
        assert slope[most].item() == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=1e-2)


def test_the_slope_of_each_cell_is_that_of_the_plain_formula():
    draw = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(2, 19, 4, UNITS, generator=draw)).double().requires_grad_()
    wanted_logits = 8 * torch.randn(2, 19, 4, UNITS, generator=draw).double()
    following = torch.tensor([[1, 5, 5, 0], [2, 0, 0, 0]])
    wanted = lattice.collapse(wanted_logits, following)
    found = lattice.divergence(logits, following, wanted)
    weights = torch.rand(2, 19, 4, generator=draw).double()
    (slope,) = torch.autograd.grad((found * weights).sum(), logits)
    plain = torch.zeros(2, 19, 4, dtype=torch.float64)
    p, q = wanted_logits.softmax(3), logits.softmax(3)
    for row, column in np.ndindex(2, 4):
        unit = int(following[row, column])
        rest = [k for k in range(1, UNITS) if k != unit]
        for members in ([0], rest, [unit] if unit else []):
            if members:
                theirs = p[row, :, column][:, members].sum(1)
                ours = q[row, :, column][:, members].sum(1)
                plain[row, :, column] = plain[row, :, column] + theirs * (theirs / ours).log()
    (plain_slope,) = torch.autograd.grad((plain * weights).sum(), logits)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(slope, plain_slope)


def test_what_is_all_but_certain_and_a_vocabulary_of_one_unit_have_finite_slopes():
    logits = torch.tensor([[[[60.0, -60.0], [-60.0, 60.0]]]], requires_grad=True)
    other = torch.tensor([[[[-60.0, 60.0], [-60.0, 60.0]]]])
    following = torch.tensor([[1, 0]])
    found = lattice.divergence(logits, following, lattice.collapse(other, following))
    found.sum().backward()
    # The first cell: the teacher is sure of the unit, the student of the blank; 120 nats apart.
    torch.testing.assert_close(found.detach(), torch.tensor([[[120.0, 0.0]]]))
    torch.testing.assert_close(logits.grad, torch.tensor([[[[1.0, -1.0], [0.0, 0.0]]]]))


def test_a_lattice_too_large_for_the_memory_is_split_which_changes_nothing(
    student, teacher, both, monkeypatch, caplog
):
    def learned() -> tuple[torch.Tensor, list[torch.Tensor]]:
        losses = lattice.loss(student, teacher, 0.1, both, torch.tensor(LENGTHS), REFERENCES)
        weighted = (losses * torch.arange(1.0, 6.0)).sum()
        wanted = [both[0], *student.output.parameters(), *student.prediction.parameters()]
        return losses.detach(), list(torch.autograd.grad(weighted, wanted))

    whole = learned()
    monkeypatch.setattr(accelerator, "memory_bytes", lambda: 10_000)
    monkeypatch.setattr(accelerator, "MOST_AT_ONCE", 8)
    rnnt._say_split.cache_clear()
    with caplog.at_level(logging.WARNING, "fedspeech"):
        parted = learned()
    assert "it is computed in parts" in caplog.text
    torch.testing.assert_close(parted, whole)


def test_the_teachers_lattice_is_never_there_as_a_whole(student, teacher, monkeypatch):
    """Nor is anything of the vocabulary's size kept but the student's logits."""
    steps, units = 160, 20
    sizes: list[int] = []
    join = type(teacher).join

    def watched(self, encoded, predicted):
        found = join(self, encoded, predicted)
        if self is teacher:
            sizes.append(found.numel())
        return found

    monkeypatch.setattr(RNNT, "join", watched)
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.numel()) and t, lambda t: t
    ):
        encoded, taught = torch.randn(1, steps, JOINT), torch.randn(1, steps, JOINT + 3)
        lattice.loss(
            student,
            teacher,
            1.0,
            (encoded.requires_grad_(), taught),
            torch.tensor([steps]),
            [[1] * units],
        )
    whole = steps * (units + 1) * UNITS
    assert max(sizes) == 16 * (units + 1) * UNITS and sum(sizes) == whole
    # The logits, and the gradient of the transducer's loss; the joint layer has other sizes.
    assert sum(size == whole for size in kept.values()) == 2, kept.values()
