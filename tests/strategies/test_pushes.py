"""What is pushed of a model, and what is told of it."""

from pathlib import Path

import pytest
import torch

from fedspeech import protocol, tensors
from fedspeech.budgets import Budgets
from fedspeech.config.budget import BudgetSettings
from fedspeech.diff.apply import apply
from fedspeech.diff.wire import base_of
from fedspeech.errors import ModelError
from fedspeech.population import Population
from fedspeech.releases import Releases
from server.results import _took
from strategies.outcome import Outcome
from strategies.pushes import Pushes

DRAW = torch.Generator().manual_seed(0)


def model() -> dict[str, torch.Tensor]:
    """Two matrices; a row of the second was never trained."""
    found = {name: torch.randn(30, 40, generator=DRAW) for name in ("a.weight", "b.weight")}
    found["b.weight"][3] = 0
    return found


@pytest.fixture
def generic(tmp_path):
    found = model()
    tensors.write(Population(tmp_path).generic_path, found)
    return found


def pushing(folder, generic, method) -> Pushes:
    budgets = Budgets(BudgetSettings(base="4x", method=method), tensors.size(generic), {})
    return Pushes(Population(folder), Releases(folder / "releases"), budgets, method)


def moved(generic) -> dict[str, torch.Tensor]:
    return {name: t + 0.1 * torch.randn(t.shape, generator=DRAW) for name, t in generic.items()}


@pytest.mark.parametrize(("method", "additive"), [("hash", ("b.weight",)), ("sparse", ())])
def test_tensors_that_fell_back_to_the_additive_form_are_told(tmp_path, generic, method, additive):
    new, pushes = moved(generic), pushing(tmp_path, generic, method)
    once, kept = pushes.once("s1", new, None), pushes.to_keep("s1", new, None)
    for push in (once, kept):
        (data,) = protocol.unpack_diffs(push.records["model"])
        assert tensors.sha256(apply(generic, data)) == push.name
        assert push.took.bytes == len(data) and push.took.additive == additive
    outcome = Outcome(pushed={("mean", None): {"s1": once.took, "s2": kept.took}})
    took = _took(outcome, "mean", ["s1", "s2"])
    assert took["additive"] == list(additive) and took["most_bytes"] == once.took.bytes


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("line.json", Path.unlink, "missing or damaged: expected the model "),
        ("line.json", cut, "not readable: "),
        ("0001.diff", Path.unlink, "a release is missing"),
        ("0001.diff", cut, "the diff is damaged: "),
    ],
)
def test_a_line_that_does_not_lead_to_what_a_device_holds_is_named(
    tmp_path, generic, file, damage, told
):
    pushes = pushing(tmp_path, generic, "sparse")
    first = pushes.to_keep("s1", new := moved(generic), None)
    (data,) = protocol.unpack_diffs(pushes.to_keep("s1", moved(new), first.name).records["model"])
    assert base_of(data) == first.name
    path = Population(tmp_path).pushed("s1") / file
    damage(path)
    with pytest.raises(ModelError) as caught:
        pushes.to_keep("s1", moved(new), first.name)
    assert str(path) in str(caught.value) and told in str(caught.value)
