"""How many models are built side by side."""

from collections.abc import Iterator

import pytest
import torch

from fedspeech import tensors
from fedspeech.aggregation import AggregationRule
from fedspeech.budgets import Budgets
from fedspeech.config import Config
from fedspeech.config.budget import BudgetSettings
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.models.description import ModelDescription
from fedspeech.population import Population
from fedspeech.protocol import Member
from fedspeech.releases import Releases
from fedspeech.tensors import Tensors
from fedspeech.units import learn
from strategies import Random, bases
from strategies.bases import BaseModels
from strategies.exchange import Exchange
from strategies.pushes import Pushes
from strategies.questions import Questions

SPEAKERS = [f"s{number}" for number in range(7)]


class Counting(Population):
    """Counts the personal models that are open at once."""

    most = now = 0

    def personal(self, speaker: str) -> Iterator[tuple[str, torch.Tensor]]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield from super().personal(speaker)
        finally:
            self.now -= 1


def models(population: Population, rule: AggregationRule) -> dict[str, Tensors]:
    exchange = Exchange([Member(s, i, 1.0, 1, "") for i, s in enumerate(SPEAKERS)], 1.0, [])
    exchange.admit(SPEAKERS)
    about = ModelDescription(
        "tdnn-tiny", FeatureSettings(), learn(["yes no"], UnitSettings(kind="words"))
    )
    pushes = Pushes(
        population,
        Releases(population.folder / "releases"),
        Budgets(BudgetSettings(), 0, {}),
        "sparse",
    )
    found = BaseModels(
        *({"one": rule}, population, about, Config(), exchange),
        *(Questions(population, exchange, 0), pushes),
    )
    found.decide(None, 1, "one")
    return {speaker: dict(model) for speaker, model in found._built("one", None, SPEAKERS)}


@pytest.mark.parametrize(("mapped", "together"), [(1000, 7), (9, 3), (1, 1)])
def test_no_more_files_are_read_at_once_than_a_process_may_map(
    tmp_path, monkeypatch, mapped, together
):
    monkeypatch.setattr(bases, "MOST_MAPPED", mapped)
    population = Counting(tmp_path)
    tensors.write(population.generic_path, {"a": torch.zeros(3), "b": torch.zeros(2)})
    for number, speaker in enumerate(SPEAKERS):
        model = {"a": torch.full((3,), 2.0**number), "b": torch.full((2,), 1.0)}
        tensors.write(population.personal_path(speaker), model)
    found = models(population, Random(2))
    assert population.most == 2 * together
    for speaker, model in found.items():
        sums = {(2.0**i + 2.0**j) / 2 for i in range(7) for j in range(i)}
        assert float(model["a"][0]) in sums - {2.0 ** SPEAKERS.index(speaker)}
        assert model["b"].tolist() == [1.0, 1.0]
