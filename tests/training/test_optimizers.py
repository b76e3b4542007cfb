"""LAMB by its formula."""

import numpy as np
import pytest
import torch

from fedspeech.training.optimizers import lamb

RATE, DECAY, BETAS, EPSILON = 0.01, 0.1, (0.9, 0.999), 1e-6


def by_hand(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """w - rate * phi(|w|) / |r| * r, r = m / (sqrt(v) + eps) + decay * w, phi(z) = min(z, 10)."""
    first = second = np.zeros_like(weights)
    for gradient in gradients:
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        step = first / (np.sqrt(second) + EPSILON) + DECAY * weights
        ratio = min(np.linalg.norm(weights), 10.0) / np.linalg.norm(step)
        weights = weights - RATE * ratio * step
    return weights


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_a_step_is_as_long_as_the_weights_are_large(scale):
    draw = np.random.default_rng(0)
    starts = [scale * draw.standard_normal(shape) for shape in ((4, 3), (5,))]
    gradients = [draw.standard_normal((6, *start.shape)) for start in starts]
    parameters = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    optimizer = lamb(parameters, DECAY)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    for number in range(6):
        for parameter, its in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(its[number])
        optimizer.step()
    for parameter, start, its in zip(parameters, starts, gradients, strict=True):
        wanted = by_hand(start, its)
        np.testing.assert_allclose(parameter.detach(), wanted, rtol=1e-5, atol=1e-5 * scale)
        assert np.linalg.norm(wanted - start) > 0.5 * RATE * min(np.linalg.norm(start), 10.0)


def test_what_had_no_gradient_stays():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = lamb([used, unused], DECAY)
    optimizer.param_groups[0]["lr"] = RATE
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3)) and not torch.equal(used, torch.ones(3))
