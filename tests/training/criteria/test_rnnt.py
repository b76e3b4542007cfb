import itertools
import logging
import math

import numpy as np
import pytest
import torch

from fedspeech import accelerator, seeding
from fedspeech.errors import CorpusError
from fedspeech.models.rnnt import RNNT, Shape
from fedspeech.training import criteria
from fedspeech.training.criteria import rnnt

UNITS = 3


@pytest.fixture
def model() -> RNNT:
    with seeding.scoped(0, 0, "", "rnnt"):
        return RNNT(4, UNITS, Shape(1, 6, 1, 5, embedding=4, joint=6, stacking=1, subsampling=1))


def heard(steps: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(steps, 6, generator=torch.Generator().manual_seed(seed))


def brute_force(model: RNNT, encoded: torch.Tensor, reference: list[int]) -> float:
    """-log of the summed probability of all alignments, each walked through on its own.

    An alignment is an order of the reference's units and as many blanks as there are steps, with a
    blank at its end: a blank moves on in time, a unit in the reference (Graves 2012, figure 1).
    """
    predicted, _ = model.predict(torch.tensor([[0, *reference]]))
    joint = np.tanh((encoded[:, None] + predicted).detach().double().numpy())
    weight, bias = (p.detach().double().numpy() for p in model.output.parameters())
    logits = joint @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    steps, total = len(encoded), 0.0
    for places in itertools.combinations(range(steps + len(reference) - 1), len(reference)):
        t, u, probability = 0, 0, 1.0
        for place in range(steps + len(reference)):
            if place in places:
                probability *= p[t, u, reference[u]]
                u += 1
            else:
                probability *= p[t, u, 0]
                t += 1
        assert (t, u) == (steps, len(reference))
        total += probability
    return -math.log(total)


@pytest.mark.parametrize("reference", [[], [1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
@pytest.mark.parametrize("steps", [3, 4, 6])
def test_the_loss_is_that_of_all_alignments(model, reference, steps):
    encoded = heard(steps, seed=steps)
    found = rnnt.loss(model, encoded[None], torch.tensor([steps]), [reference])
    assert found.shape == (1,) and found.dtype == torch.float32
    assert found.item() == pytest.approx(brute_force(model, encoded, reference), rel=1e-5)


REFERENCES, LENGTHS = [[1, 2], [2], [1, 1, 2], [], [1, 2, 1, 2]], [5, 2, 6, 3, 3]
"""The last one has more units than steps."""


def batch(lengths: list[int], steps: int) -> torch.Tensor:
    encoded = torch.full((len(lengths), steps, 6), 7.0)  # what lies beyond the end does not count
    for row, length in zip(encoded, lengths, strict=True):
        row[:length] = heard(length, seed=length)
    return encoded.requires_grad_()


def test_each_utterance_of_a_batch_has_its_own_loss(model):
    encoded = batch(LENGTHS, 8)
    found = rnnt.loss(model, encoded, torch.tensor(LENGTHS), REFERENCES)
    wanted = [
        brute_force(model, row[:length], reference)
        for row, length, reference in zip(encoded, LENGTHS, REFERENCES, strict=True)
    ]
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-5)
    found.sum().backward()
    for row, length in zip(encoded.grad, LENGTHS, strict=True):
        assert row[:length].any() and not row[length:].any()


def test_gradients_are_those_of_finite_differences(model):
    encoded, reference, step = heard(3, seed=1), [1, 2], 1e-5
    heard_ = encoded[None].clone().requires_grad_()
    rnnt.loss(model, heard_, torch.tensor([3]), [reference]).sum().backward()
    for place in itertools.product(range(3), range(6)):
        ends = []
        for sign in (-1, 1):
            moved = encoded.double().clone()
            moved[place] += sign * step
            ends.append(brute_force(model, moved, reference))
        slope = (ends[1] - ends[0]) / (2 * step)
        assert heard_.grad[0][place].item() == pytest.approx(slope, abs=1e-4)
    for parameter in model.output.weight, model.predicted.weight, model.embedding.weight:
        place = np.unravel_index(int(parameter.grad.abs().argmax()), parameter.shape)
        ends = []
        for sign in (-1, 1):
            with torch.no_grad():
                parameter[place] += sign * 1e-2
            ends.append(brute_force(model, encoded, reference))
            with torch.no_grad():
                parameter[place] -= sign * 1e-2
        assert parameter.grad[place].item() == pytest.approx((ends[1] - ends[0]) / 2e-2, rel=1e-2)


def test_a_batch_of_which_nothing_is_heard_has_a_loss_of_zero_and_can_be_learned_from(model):
    encoded = batch([0, 0], 2)
    found = rnnt.loss(model, encoded, torch.tensor([0, 0]), [[1, 2], [1, 1]])
    assert found.tolist() == [0, 0]
    found.mean().backward()
    assert not encoded.grad.any()


def test_a_lattice_too_large_for_the_memory_is_split_which_it_says_and_changes_nothing(
    model, monkeypatch, caplog
):
    model.dropout.p = 0.3  # of what is read, and drawn the same whatever the parts

    def learned() -> tuple[torch.Tensor, list[torch.Tensor]]:
        encoded = batch(LENGTHS, 8)
        with seeding.scoped(0, 0, "", "dropout"):
            losses = rnnt.loss(model, encoded, torch.tensor(LENGTHS), REFERENCES)
        # Every utterance counts differently, so that gradients cannot be mixed up.
        weighted = (losses * torch.arange(1.0, 6.0)).sum()
        wanted = [encoded, *model.output.parameters(), *model.prediction.parameters()]
        return losses.detach(), list(torch.autograd.grad(weighted, wanted))

    monkeypatch.setattr(accelerator, "MOST_AT_ONCE", 8)
    whole = learned()
    assert not caplog.records
    for memory, alone in ((20_200, 0), (10_000, 1), (1, 1)):
        # An eighth of 20,200 bytes are 30 cells of 84 bytes, of 10,000 14; the third utterance has
        # 24, and cannot be split.
        monkeypatch.setattr(accelerator, "memory_bytes", lambda there=memory: there)
        rnnt._say_split.cache_clear()
        rnnt._say_too_large.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fedspeech"):
            parted = learned()
        assert "it is computed in parts" in caplog.text
        assert caplog.text.count("one utterance's lattice alone") == alone
        assert len(caplog.records) == 1 + alone
        torch.testing.assert_close(parted, whole)
    assert rnnt._split([0, 1, 2, 3], LENGTHS, [2, 1, 3, 0], 14) == [[0], [1], [2], [3]]
    assert rnnt._split([0, 1, 2, 3], LENGTHS, [2, 1, 3, 0], 30) == [[0, 1], [2], [3]]
    assert rnnt._split([0, 1, 3], LENGTHS, [2, 1, 3, 0], 45) == [[0, 1, 3]]


def test_a_lattice_that_torchaudio_cannot_count_is_split_and_then_told(model, monkeypatch):
    """Its indices have 32 bits, whatever memory there is."""

    def learned(sizes: list[int]) -> torch.Tensor:
        references = [[1] * units for units in (2, 1, 3)]
        lengths = torch.tensor(sizes)
        return rnnt.loss(model, batch(sizes, max(sizes)), lengths, references).detach()

    whole = learned([5, 4, 6])
    monkeypatch.setattr(rnnt, "MOST_LOGITS", 3 * 24)
    torch.testing.assert_close(learned([5, 4, 6]), whole)
    with pytest.raises(CorpusError, match="of 7 steps and 3 units has a lattice of 7 x 4 x 3 "):
        learned([5, 4, 7])


def test_what_is_aligned_in_one_way_alone_has_the_same_loss_on_a_gpu(model, monkeypatch):
    """Of one step or without a unit: there torchaudio's kernel for GPUs leaves it out."""
    lengths, references = [4, 1, 3, 1, 2], [[1, 2], [2, 1, 1], [], [], [1]]

    def learned() -> tuple[torch.Tensor, torch.Tensor]:
        encoded = batch(lengths, 4)
        losses = rnnt.loss(model, encoded, torch.tensor(lengths), references)
        (slope,) = torch.autograd.grad((losses * torch.arange(1.0, 6.0)).sum(), [encoded])
        return losses.detach(), slope

    whole = learned()
    summed, heard = rnnt._summed, []

    def kernel(logits, lengths, spelled):
        heard.append((lengths.tolist(), spelled.counts.tolist()))
        return summed(logits, lengths, spelled)

    with monkeypatch.context() as patch:
        patch.setattr(rnnt, "of_logits", rnnt._of_gpu)
        patch.setattr(rnnt, "_summed", kernel)
        torch.testing.assert_close(learned(), whole)
    assert heard == [([4, 2], [2, 1])]


def test_the_lattice_is_not_kept_where_it_is_split(model, monkeypatch):
    """What autograd keeps for the gradient: the lattice, or none of it. It alone has four axes."""

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel() if t.dim() == 4 else 0) or t, lambda t: t
        ):
            encoded = batch([40] * 8, 40)
            rnnt.loss(model, encoded, torch.full((8,), 40), [[1] * 30] * 8)
        return max(sizes)

    assert kept() >= 8 * 40 * 31 * 3
    monkeypatch.setattr(accelerator, "memory_bytes", lambda: 1)
    assert kept() == 0


def test_it_is_that_of_transducers(model):
    found = criteria.of(model)(batch([4], 4), torch.tensor([4]), [[1, 2]])
    assert found.item() == pytest.approx(brute_force(model, heard(4, seed=4), [1, 2]), rel=1e-5)
