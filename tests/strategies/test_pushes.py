"""What is pushed of a model, and what is told of it."""

import pytest
import torch

from fedspeech import protocol, tensors
from fedspeech.budgets import Budgets
from fedspeech.config.budget import BudgetSettings
from fedspeech.diff.apply import apply
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


@pytest.mark.parametrize(("method", "additive"), [("hash", ("b.weight",)), ("sparse", ())])
def test_tensors_that_fell_back_to_the_additive_form_are_told(tmp_path, method, additive):
    generic = model()
    new = {name: t + 0.1 * torch.randn(t.shape, generator=DRAW) for name, t in generic.items()}
    population = Population(tmp_path)
    tensors.write(population.generic_path, generic)
    budgets = Budgets(BudgetSettings(base="4x", method=method), tensors.size(generic), {})
    pushes = Pushes(population, Releases(tmp_path / "releases"), budgets, method)
    once, kept = pushes.once("s1", new, None), pushes.to_keep("s1", new, None)
    for push in (once, kept):
        (data,) = protocol.unpack_diffs(push.records["model"])
        assert tensors.sha256(apply(generic, data)) == push.name
        assert push.took.bytes == len(data) and push.took.additive == additive
    outcome = Outcome(pushed={("mean", None): {"s1": once.took, "s2": kept.took}})
    took = _took(outcome, "mean", ["s1", "s2"])
    assert took["additive"] == list(additive) and took["most_bytes"] == once.took.bytes
