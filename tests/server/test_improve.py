import random

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg, FedProx, Result

from fedspeech import protocol
from fedspeech.config import Config
from fedspeech.config.federation import ImproveSettings
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.errors import ConfigError
from fedspeech.models.description import ModelDescription
from fedspeech.participation import Round
from fedspeech.units import learn
from server import improve
from server.attended_grid import AttendedGrid

DESCRIPTION = ModelDescription(
    "tdnn-tiny", FeatureSettings(), learn(["ba di"], UnitSettings(kind="words"))
)


def settings(name: str, **options) -> ImproveSettings:
    return ImproveSettings.model_validate({"class": name, "options": options})


def test_the_named_strategy_is_made_with_its_options():
    found = improve.strategy(settings("flwr.serverapp.strategy:FedProx", proximal_mu=0.5))
    assert isinstance(found, FedProx)
    assert found.proximal_mu == 0.5


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("flwr.serverapp.strategy:FedAverage", {}, "not found"),
        ("no_such_package:FedAvg", {}, "not found"),
        ("flwr.serverapp.strategy", {}, "not found"),
        (".relative:FedAvg", {}, "not found"),
        ("builtins:dict", {}, "expected a subclass of flwr.serverapp.strategy.Strategy"),
        ("flwr.serverapp.strategy:FedAvg", {"fractoin": 1}, "fractoin"),
        (
            "flwr.serverapp.strategy:FedAvg",
            {"fraction_train": "half"},
            "fraction_train: expected a number, found 'half'",
        ),
        (
            "flwr.serverapp.strategy:FedProx",
            {"min_available_nodes": [2], "proximal_mu": 0.1},
            "min_available_nodes: expected a number, found [2]",
        ),
    ],
)
def test_a_strategy_that_cannot_be_made_is_told(name, options, told):
    with pytest.raises(ConfigError) as caught:
        improve.strategy(settings(name, **options))
    assert str(caught.value).startswith(f"federation.improve.class = {name!r}: ")
    assert told in str(caught.value)


class Noisy(FedAvg):
    """Adds what Flower's strategies for differential privacy do, and draws nodes as all do."""

    def start(self, grid, initial_arrays, **rest):
        noise = np.random.normal(size=3) + random.random()  # noqa: NPY002
        model = {"x": protocol.unpack(initial_arrays)["x"] + torch.tensor(noise)}
        return Result(arrays=protocol.pack(model))


def test_all_draws_of_a_strategy_follow_from_the_seed(monkeypatch):
    monkeypatch.setattr(improve, "strategy", lambda settings: Noisy())

    def improved(seed: int, before: int) -> list[float]:
        random.seed(before)
        np.random.seed(before)  # noqa: NPY002
        asked = {"improve": {"class": "mine:Noisy"}}
        config = Config.model_validate({"seed": seed, "federation": asked})
        model = {"x": torch.zeros(3, dtype=torch.float64)}
        grid = AttendedGrid(None, {}, [Round("improve", 1, {}, {}, {}, 0.0)], 1.0, None)
        return improve.run(grid, model, DESCRIPTION, config)["x"].tolist()

    assert improved(0, before=1) == improved(0, before=2)
    assert improved(0, before=1) != improved(1, before=1)
