import itertools
import math

import numpy as np
import pytest
import torch

from fedspeech import models
from fedspeech.training import criteria
from fedspeech.training.criteria import ctc

UNITS = 3


def brute_force(logits: torch.Tensor, reference: list[int]) -> float:
    """-log of the summed probability of every alignment that spells the reference."""
    log_p = logits.double().log_softmax(1).tolist()
    total = 0.0
    for path in itertools.product(range(UNITS), repeat=len(log_p)):
        if [unit for unit, _ in itertools.groupby(path) if unit] == reference:
            total += math.exp(sum(log_p[t][unit] for t, unit in enumerate(path)))
    return -math.log(total) if total else math.inf


def drawn(frames: int, seed: int) -> torch.Tensor:
    return torch.randn(frames, UNITS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reference", [[], [1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
@pytest.mark.parametrize("frames", [1, 2, 4, 6])
def test_the_loss_is_that_of_all_alignments(reference, frames):
    logits = drawn(frames, seed=len(reference))
    wanted = brute_force(logits, reference)
    found = ctc.loss(logits[None], torch.tensor([frames]), [reference])
    assert found.shape == (1,) and found.dtype == torch.float32
    # Too few frames for the reference: such an utterance teaches nothing.
    assert found.item() == pytest.approx(0.0 if math.isinf(wanted) else wanted, rel=1e-5)


def test_each_utterance_of_a_batch_has_its_own_loss():
    references, lengths = [[1, 2], [2], [1, 1, 2], []], [5, 2, 6, 3]
    logits = torch.zeros(4, 6, UNITS)
    for row, length in zip(logits, lengths, strict=True):
        row[:length] = drawn(length, seed=length)
        row[length:] = 100.0  # what lies beyond the end does not count
    found = ctc.loss(logits, torch.tensor(lengths), references)
    wanted = [
        brute_force(row[:length], reference)
        for row, length, reference in zip(logits, lengths, references, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_gradients_are_those_of_finite_differences_and_end_with_the_utterance():
    logits, reference, step = drawn(4, seed=1)[None].requires_grad_(), [1, 2], 1e-5
    padded = torch.cat([logits, torch.zeros(1, 2, UNITS)], dim=1)
    found = torch.autograd.grad(ctc.loss(padded, torch.tensor([4]), [reference]).sum(), padded)[0]
    assert not found[0, 4:].any()
    for frame, unit in itertools.product(range(4), range(UNITS)):
        ends = []
        for sign in (-1, 1):
            moved = logits[0].detach().double().clone()
            moved[frame, unit] += sign * step
            ends.append(brute_force(moved, reference))
        slope = (ends[1] - ends[0]) / (2 * step)
        assert found[0, frame, unit].item() == pytest.approx(slope, abs=1e-4)


def test_what_cannot_be_spelled_has_no_gradient():
    logits = drawn(2, seed=1)[None].requires_grad_()
    ctc.loss(logits, torch.tensor([2]), [[1, 1]]).sum().backward()
    assert not logits.grad.any()


def test_it_is_that_of_tdnns():
    assert criteria.of(models.build("tdnn-tiny", 40, 3)) is ctc.loss
