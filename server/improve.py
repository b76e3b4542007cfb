"""An ordinary Flower strategy improves G over rounds before it is personalized."""

import importlib
import inspect
import random
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import Strategy

from fedspeech import protocol, seeding
from fedspeech.config import Config
from fedspeech.config.federation import FederationSettings, ImproveSettings
from fedspeech.errors import ConfigError, RunError
from fedspeech.models.description import ModelDescription
from fedspeech.participation import Round
from fedspeech.tensors import Tensors, check_like
from server.attended_grid import AttendedGrid


def strategy(settings: ImproveSettings) -> Strategy:
    """The strategy that the settings name. Raises ConfigError where it cannot be made."""
    module, _, name = settings.strategy.partition(":")
    where = f"federation.improve.class = {settings.strategy!r}"
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: not found: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ConfigError(f"{where}: expected a subclass of flwr.serverapp.strategy.Strategy")
    for name, parameter in inspect.signature(found).parameters.items():
        value = settings.options.get(name, 0)
        if isinstance(parameter.default, int | float) and not isinstance(value, int | float):
            raise ConfigError(f"{where}: {name}: expected a number, found {value!r}")
    try:
        return found(**settings.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def check(settings: FederationSettings, rounds: Sequence[Round]) -> None:
    """Raise ConfigError where the strategy and who takes part in its rounds do not go together.

    Flower's strategies wait for ever where fewer nodes are there than they want, and draw a sample
    of their own where they are told to.
    """
    if settings.improve is None:
        return
    found = strategy(settings.improve)
    names = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    wanted = {name: int(getattr(found, name, 0)) for name in names}
    one = min(rounds, key=lambda one: len(one.in_time))
    if len(one.in_time) < max(wanted.values()):
        told = ", ".join(f"{name} = {number}" for name, number in wanted.items())
        raise ConfigError(
            f"federation.improve: {type(found).__name__} wants more speakers than the "
            f"{len(one.in_time)} that are there in round {one.number} ({told}); set them in "
            "federation.improve.options"
        )
    if settings.participation is not None and getattr(found, "fraction_train", 1.0) != 1.0:
        raise ConfigError(
            "federation.improve.options: fraction_train samples once more; set "
            "federation.participation.sample instead"
        )


def run(
    grid: AttendedGrid, model: Tensors, description: ModelDescription, settings: Config
) -> Tensors:
    """G after the strategy's rounds.

    Raises RunError where it has no result, or fewer speakers answer than the quorum.
    """
    improve = settings.federation.improve
    assert improve is not None
    # Flower's strategies draw the nodes of a round from Python's own generator, and what they add
    # for differential privacy from NumPy's.
    random.seed(seeding.key(settings.seed, 0, "", "sampling of clients"))
    np.random.seed(seeding.key(settings.seed, 0, "", "noise of a strategy") % 2**32)  # noqa: NPY002  (Flower draws from it)
    said = {
        "description": description.to_json(),
        "seed": settings.seed,
        "settings": settings.personal.model_dump(mode="json"),
    }
    found = strategy(improve)
    grid.follow(found)
    config = ConfigRecord(dict(protocol.write_text(said)))
    try:
        result = found.start(
            grid,
            ArrayRecord(model),
            num_rounds=improve.rounds,
            train_config=config,
            evaluate_config=ConfigRecord(dict(config)),
        )
    except AppExitException as error:
        raise RunError(f"{improve.strategy}: {error}") from None
    if not result.arrays:
        raise RunError(f"{improve.strategy}: no client gave a usable model")
    averaged = protocol.unpack(result.arrays)
    check_like(averaged, model)
    return {name: tensor.to(model[name].dtype) for name, tensor in averaged.items()}
