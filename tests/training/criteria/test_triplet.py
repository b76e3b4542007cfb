"""The triplet loss against loops in plain NumPy."""

import numpy as np
import pytest
import torch

from fedspeech.training.criteria import triplet


def brute_force(distances: np.ndarray, own: list[int]) -> np.ndarray:
    losses = []
    for row, mine in zip(distances, own, strict=True):
        hinges = [
            max(0.0, triplet.MARGIN + row[mine] - other)
            for number, other in enumerate(row)
            if number != mine
        ]
        above = [hinge for hinge in hinges if hinge > 0]
        losses.append(sum(above) / len(above) if above else 0.0)
    return np.array(losses)


def drawn(utterances: int = 40, phrases: int = 7) -> tuple[torch.Tensor, list[int]]:
    draw = np.random.default_rng(0)
    distances = torch.from_numpy(draw.uniform(0, 4, (utterances, phrases)))
    return distances, draw.integers(phrases, size=utterances).tolist()


def test_the_loss_is_that_of_loops_over_all_triplets():
    distances, own = drawn()
    found = triplet.loss(distances, torch.ones(40), [[number] for number in own])
    np.testing.assert_allclose(found, brute_force(distances.numpy(), own), rtol=1e-12)
    assert (found > 0).any()


def test_what_is_fulfilled_teaches_nothing():
    distances = torch.tensor([[0.5, 1.5, 9.0]], requires_grad=True)  # exactly the margin
    loss = triplet.loss(distances, torch.ones(1), [[0]])
    loss.sum().backward()
    assert loss.item() == 0 and not distances.grad.any()


def test_the_own_phrase_comes_nearer_and_violating_ones_go_away():
    distances = torch.tensor([[2.0, 1.0, 2.5, 7.0]], requires_grad=True)
    triplet.loss(distances, torch.ones(1), [[0]]).sum().backward()
    assert distances.grad.tolist() == [[1.0, -0.5, -0.5, 0.0]]


def test_one_phrase_alone_has_no_loss():
    loss = triplet.loss(torch.tensor([[3.0]]), torch.ones(1), [[0]])
    assert loss.tolist() == pytest.approx([0.0])
