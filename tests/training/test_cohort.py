"""The stack of many against the plain loop over one."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from numpy.testing import assert_allclose

from fedspeech import features, models, seeding
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.config.training import Optimization, PersonalSettings
from fedspeech.models import rnnt, tdnn
from fedspeech.models.rnnt import RNNT
from fedspeech.models.stacked_tdnn import StackedTDNN
from fedspeech.models.tdnn import TDNN, Layer
from fedspeech.tensors import state
from fedspeech.training.cohort import Cohort
from fedspeech.training.course import Course
from fedspeech.training.criteria import rnnt as transducing
from fedspeech.training.loop import Loop
from fedspeech.units import learn

MFCC = FeatureSettings()
SHARES = (24, 5, 13, 1)
"""Utterances of each speaker: as many updates each as they fill minibatches."""
SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "final_learning_rate": 1e-3,
    "warmup": 0.1,
    "weight_decay": 0.05,
    "gradient_norm": 2.0,
    "dropout": [[0.0, 0.0], [0.5, 0.3], [1.0, 0.0]],
    "precision": "fp32",
}


TDNN_SHAPE = tdnn.Shape(16, (Layer(1), Layer(3, 2), Layer(5, 1)))
JOINED = rnnt.Shape(3, 12, 2, 10, embedding=10, joint=8, subsampling=6, bypass=True)
PROJECTED = rnnt.Shape(2, 14, 1, 10, embedding=6, joint=8, projection=9)
KINDS = {
    "tdnn": (TDNN, TDNN_SHAPE, 1e-9),
    "rnnt": (RNNT, JOINED, 1e-5),
    "rnnt, projected": (RNNT, PROJECTED, 1e-5),
}
"""Architecture, sizes, and what roundings come to: a transducer's loss is float32."""


def model(number: int, dtype: torch.dtype, kind: str = "tdnn") -> torch.nn.Module:
    architecture, shape, _ = KINDS[kind]
    with seeding.scoped(number, 0, "", "cohort"):
        return architecture(40, 7, shape).to(dtype)


def courses(spoken, **changes) -> list[Course]:
    units = learn([utterance.text for utterance in spoken], UnitSettings(kind="words"))
    settings = Optimization.model_validate({**SETTINGS, **changes})
    return [
        Course(settings, MFCC, units, spoken[-count:], (3, 1, f"s{number}", "cohort"))
        for number, count in enumerate(SHARES)
    ]


def together(spoken, dtype, which=(0, 1, 2, 3), kind="tdnn", **changes):
    modules = [model(number, dtype, kind) for number in which]
    cohort = Cohort(
        models.stack(modules[0]),
        [name for name, _ in modules[0].named_parameters()],
        [state(each) for each in modules],
        [courses(spoken, **changes)[number] for number in which],
    )
    found = cohort.run()
    return found, [member.losses for member in cohort.members]


def one_by_one(spoken, dtype, kind="tdnn", **changes):
    found, losses = [], []
    for number, course in enumerate(courses(spoken, **changes)):
        loop = Loop(model(number, dtype, kind), course)
        losses.append([loop.epoch(epoch) for epoch in range(course.settings.epochs)])
        found.append(state(loop.model))
    return found, losses


def assert_alike(found, expected, tolerance: float) -> None:
    """Equal but for `tolerance` of what each tensor holds."""
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            apart = (ours[name] - tensor).norm() / tensor.norm().clamp_min(1e-12)
            assert apart < tolerance, (name, float(apart))


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_fine_tuning_is_that_of_the_loop(spoken, kind):
    *_, rounding = KINDS[kind]
    found, losses = together(spoken, torch.float64, kind=kind)
    expected, plain = one_by_one(spoken, torch.float64, kind)
    assert_alike(found, expected, rounding)
    for ours, theirs in zip(losses, plain, strict=True):
        assert_allclose(ours, theirs, rtol=rounding)
    moved = [(a["output.bias"] - b["output.bias"]).norm() for a, b in pairwise(found)]
    assert min(moved) > 0.01  # four models, and not four times the same


def test_one_step_in_float32_is_that_of_the_loop(spoken):
    changes = {"epochs": 1, "batch_size": 24, "dropout": [[0.0, 0.2]], "warmup": 0.0}
    changes |= {"learning_rate": PersonalSettings().learning_rate}
    found, losses = together(spoken, torch.float32, **changes)
    expected, plain = one_by_one(spoken, torch.float32, **changes)
    exact, _ = one_by_one(spoken, torch.float64, **changes)
    # Adam's first step is the rate times the gradient's sign. Where the gradient is nothing but
    # rounding, the loop itself goes one way in float32 and another in float64.
    undecided = 0
    for ours, theirs, doubles in zip(found, expected, exact, strict=True):
        for name in theirs:
            rounding = (theirs[name] - doubles[name]).abs() > 1e-5
            undecided += int(rounding.sum())
            ours[name] = torch.where(rounding, theirs[name], ours[name])
    assert undecided < 10  # of some 60,000
    assert_alike(found, expected, 1e-5)
    assert_allclose(losses, plain, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_and_augmentation_too(spoken, kind):
    *_, rounding = KINDS[kind]
    calm = {"speeds": [], "warps": [], "volumes": [], "noise": [], "time_masks": 0}
    calm["frequency_masks"] = 0
    changes = {"dropout": [[0.0, 0.0]], "augmentation": calm, "decay": "cosine"}
    found, _ = together(spoken, torch.float64, kind=kind, **changes)
    expected, _ = one_by_one(spoken, torch.float64, kind, **changes)
    assert_alike(found, expected, rounding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [(0, 3), (1,), (2, 1)])
def test_who_shares_a_stack_changes_nothing_but_rounding(spoken, which, kind):
    *_, rounding = KINDS[kind]
    whole, _ = together(spoken, torch.float64, kind=kind)
    part, _ = together(spoken, torch.float64, which, kind)
    assert_alike(part, [whole[number] for number in which], rounding)


def test_a_lattice_of_many_that_is_too_large_for_the_memory_is_split(spoken, monkeypatch):
    changes = {"epochs": 1, "dropout": [[0.0, 0.0]]}
    whole, wanted = together(spoken, torch.float64, kind="rnnt", **changes)
    parts = []
    real = transducing.of_logits
    monkeypatch.setattr(transducing, "most_cells", lambda model, copies: 60)
    monkeypatch.setattr(transducing, "of_logits", lambda *given: [parts.append(1), real(*given)][1])
    found, losses = together(spoken, torch.float64, kind="rnnt", **changes)
    assert len(parts) > 2 * 6  # of six updates, each computed again for its gradient
    assert_alike(found, whole, 1e-5)
    for ours, theirs in zip(losses, wanted, strict=True):
        assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("kind", ["tdnn", "rnnt"])
def test_all_is_drawn_by_each_speakers_own_names(spoken, kind):
    torch.manual_seed(1)
    first, _ = together(spoken, torch.float32, kind=kind)
    torch.manual_seed(2)
    torch.randn(3)
    again, _ = together(spoken, torch.float32, kind=kind)
    for ours, theirs in zip(first, again, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["tdnn", "rnnt"])
def test_bfloat16_gives_nearly_the_same(spoken, kind):
    changes = {"epochs": 1, "dropout": [[0.0, 0.0]]}
    exact, _ = together(spoken, torch.float32, kind=kind, **changes)
    found, _ = together(spoken, torch.float32, kind=kind, precision="bf16", **changes)
    assert_alike(found, exact, 0.1)
    assert any(
        not torch.equal(a["output.weight"], b["output.weight"])
        for a, b in zip(exact, found, strict=True)
    )


# The stack as it decodes.


def test_the_same_utterances_through_many_models(spoken):
    modules = [model(number, torch.float64).eval() for number in range(3)]
    for each in modules:
        for layer in each.tdnn:
            layer.norm.running_mean.uniform_(-0.1, 0.1)
            layer.norm.running_var.uniform_(0.5, 2.0)
    batch = features.batch(spoken[:5], MFCC)
    states = [each.state_dict() for each in modules]
    tensors = {name: torch.stack([each[name] for each in states]) for name in states[0]}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.inference_mode():
        stack = StackedTDNN(modules[0])
        logits, lengths = stack(tensors, batch.features[None], batch.lengths[None])
        for row, each in zip(logits, modules, strict=True):
            expected, frames = each(batch.features, batch.lengths)
            assert_allclose(row.numpy(), expected.numpy(), rtol=1e-9, atol=1e-9)
            assert lengths[0].tolist() == frames.tolist()
    assert all(torch.equal(before[name], tensors[name]) for name in tensors)


def test_courses_of_the_same_settings_keep_their_own_number_of_updates(spoken):
    updates = [course.updates_per_epoch for course in courses(spoken)]
    assert updates == [6, 2, 4, 1]
    short = dataclasses.replace(spoken[0])
    assert courses([short])[0].updates_per_epoch == 1
