"""An ordinary Flower strategy improves G over rounds before it is personalized."""

import importlib
import random

from flwr.app import ArrayRecord, ConfigRecord
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedspeech import protocol, seeding
from fedspeech.config import Config, ImproveSettings
from fedspeech.errors import ConfigError, RunError
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors, check_like


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
    try:
        return found(**settings.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def check(settings: ImproveSettings, there: int) -> None:
    """Raise ConfigError where the strategy wants more speakers than are there.

    Flower's strategies would wait for ever.
    """
    found = strategy(settings)
    names = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    least = {name: int(getattr(found, name, 0)) for name in names}
    if there < max(least.values()):
        wanted = ", ".join(f"{name} = {number}" for name, number in least.items())
        raise ConfigError(
            f"federation.improve: {type(found).__name__} wants more speakers than the {there} "
            f"that are there ({wanted}); set them in federation.improve.options"
        )


def run(grid: Grid, model: Tensors, description: ModelDescription, settings: Config) -> Tensors:
    """G after the strategy's rounds. Raises RunError where the strategy has no result."""
    improve = settings.federation.improve
    if improve is None:
        return model
    # Flower's strategies draw the nodes of a round from Python's own generator.
    random.seed(seeding.key(settings.seed, 0, "", "sampling of clients"))
    said = {
        "description": description.to_json(),
        "seed": settings.seed,
        "settings": settings.personal.model_dump(mode="json"),
    }
    config = ConfigRecord(dict(protocol.write_text(said)))
    try:
        result = strategy(improve).start(
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
