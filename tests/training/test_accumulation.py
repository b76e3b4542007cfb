"""Several minibatches for one step of the optimizer."""

import numpy as np
import pytest
import torch

from fedspeech import features, seeding
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.config.training import Optimization
from fedspeech.models.description import ModelDescription
from fedspeech.models.rnnt import RNNT
from fedspeech.training.course import Course
from fedspeech.training.criteria import rnnt
from fedspeech.training.loop import Loop
from fedspeech.units import learn

NAME = (0, 1, "t00", "accumulated")
RATE = 0.05
SETTINGS = Optimization(
    epochs=1,
    batch_size=5,
    learning_rate=RATE,
    final_learning_rate=RATE,
    gradient_norm=1e9,
    clean=1.0,
    precision="fp32",
)


@pytest.fixture
def description(spoken) -> ModelDescription:
    units = learn([utterance.text for utterance in spoken], UnitSettings(kind="words"))
    return ModelDescription("rnnt-tiny", FeatureSettings(), units)


def model(description) -> RNNT:
    with seeding.scoped(0, 0, "", "accumulated"):
        return description.empty()


def course(description, spoken) -> Course:
    return Course(SETTINGS, description.features, description.units, spoken, NAME)


def plain(description, spoken, groups: list[int]) -> RNNT:
    """Gradient descent, a step for each group of minibatches, with autograd's own gradients."""
    found, one = model(description), course(description, spoken)
    with one.draws(0).taken_up():
        batches = iter(one.batches())
    parameters = list(found.parameters())
    for count in groups:
        summed = [torch.zeros_like(parameter) for parameter in parameters]
        for _ in range(count):
            chosen = next(batches)
            batch = features.batch([one.utterances[i] for i in chosen], description.features)
            heard = found(batch.features, batch.lengths)
            losses = rnnt.loss(found, *heard, [one.references[i] for i in chosen])
            for total, slope in zip(
                summed, torch.autograd.grad(losses.sum() / len(chosen), parameters), strict=True
            ):
                total += slope
        with torch.no_grad():
            for parameter, total in zip(parameters, summed, strict=True):
                parameter -= RATE * total / count
    return found


def descent(parameters, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0, weight_decay=decay)


@pytest.mark.parametrize(
    ("accumulated", "groups"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (8, [5])]
)
def test_a_step_is_the_mean_over_its_minibatches(description, spoken, accumulated, groups):
    """24 utterances, 5 in a minibatch; the last step of an epoch has what is left."""
    steps: list[int] = []
    loop = Loop(model(description), course(description, spoken), descent, accumulated)
    loop.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    loop.epoch(0)
    assert len(steps) == len(groups)
    wanted = plain(description, spoken, groups)
    begin = model(description)
    for (name, found), reference, before in zip(
        loop.model.named_parameters(), wanted.parameters(), begin.parameters(), strict=True
    ):
        moved = (reference - before).norm().item()
        apart = (found - reference).norm().item()
        assert apart < 1e-3 * moved + 1e-7, name
        assert np.isfinite(moved)
