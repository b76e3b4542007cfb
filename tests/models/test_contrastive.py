"""The contrastive model: its size, its distances, and what it must not see."""

import numpy as np
import pytest
import torch

from fedspeech import models
from fedspeech.models.contrastive import Contrastive


def lstm(inputs: int, width: int = 128) -> int:
    """Four gates, each with weights for input and state, and PyTorch's two biases."""
    return 4 * width * (inputs + width + 2)


def size(inputs: int, tokens: int) -> int:
    speech = lstm(4 * inputs) + 3 * lstm(128) + 128 * 129
    text = lstm(64) + lstm(128) + 128 * 129
    return speech + text + 64 * tokens


@pytest.mark.parametrize(("inputs", "tokens"), [(40, 30), (24, 500)])
def test_the_number_of_parameters_is_that_of_the_layers(inputs, tokens):
    assert models.parameters(Contrastive(inputs, tokens)) == size(inputs, tokens)


def test_it_has_the_papers_size_with_some_five_thousand_tokens():
    """The paper's has about 1.1 million in all; what it sees and its vocabulary are not known.

    With 40 features, everything but the embedding has 0.81 million: 4,540 tokens of 64 are the
    difference.
    """
    assert size(40, 0) == 809_216
    assert size(40, 4540) == pytest.approx(1.1e6, rel=1e-3)


@pytest.fixture
def model() -> Contrastive:
    torch.manual_seed(0)
    found = Contrastive(8, 12).eval()
    found.know([[1, 2, 3], [4], [5, 6]])
    return found


def test_distances_are_squared_and_between_the_two_encoders_points(model):
    features, lengths = torch.randn(4, 12, 8), torch.tensor([12, 9, 8, 3])
    distances, steps = model(features, lengths)
    assert steps.tolist() == [3, 3, 2, 1]
    speech = model.speech(features.reshape(4, 3, 32), steps).detach().numpy()
    phrase = model.text(model.embedding(torch.tensor([[5, 6]])), torch.tensor([2]))
    wanted = np.square(speech - phrase.detach().numpy()).sum(1)
    np.testing.assert_allclose(distances[:, 2].detach(), wanted, rtol=1e-4)


def test_what_comes_after_the_end_changes_nothing(model):
    features, lengths = torch.randn(2, 12, 8), torch.tensor([12, 4])
    longer = torch.cat([features, torch.randn(2, 5, 8)], 1)
    longer[1, 4:] = 100.0
    features[1, 4:] = 0.0
    torch.testing.assert_close(model(features, lengths)[0], model(longer, lengths)[0])


def test_phrases_are_no_part_of_the_state(model):
    before = set(model.state_dict())
    model.know([[7, 8, 9, 10]])
    assert set(model.state_dict()) == before
    assert model(torch.randn(3, 2, 8), torch.tensor([2, 2, 1]))[0].shape == (3, 1)


def test_its_parts_are_pulled_together_by_training(model):
    """Some updates on three phrases bring each utterance nearest to its own."""
    from fedspeech.training.criteria import triplet

    torch.manual_seed(1)
    features, lengths = torch.randn(6, 9, 8), torch.full((6,), 9)
    own = [[0], [1], [2], [0], [1], [2]]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        triplet.loss(*model(features, lengths), own).mean().backward()
        optimizer.step()
    assert model(features, lengths)[0].argmin(1).tolist() == [0, 1, 2, 0, 1, 2]
