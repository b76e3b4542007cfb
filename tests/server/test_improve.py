import pytest
from flwr.serverapp.strategy import FedProx

from fedspeech.config.federation import ImproveSettings
from fedspeech.errors import ConfigError
from server import improve


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
