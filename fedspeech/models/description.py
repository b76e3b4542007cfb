"""What goes with a model's tensors to make them usable: architecture, features and vocabulary."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from fedspeech import models
from fedspeech.config.model import FeatureSettings, ModelSettings, UnitSettings
from fedspeech.config.values import Settings
from fedspeech.errors import ConfigError, ModelError
from fedspeech.tensors import Tensors, check_like, write_whole
from fedspeech.units import Units

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class ModelDescription:
    """A name of `MODELS`, what the model sees, what it spells with, and which of its sizes are
    others than the name says.
    """

    name: str
    features: FeatureSettings
    units: Units
    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: ModelSettings, features: FeatureSettings, units: Units
    ) -> "ModelDescription":
        """Of the model that settings speak of."""
        return cls(model.name, features, units, model.sizes)

    def empty(self) -> torch.nn.Module:
        """The module with freshly drawn weights (PyTorch's generator)."""
        return models.build(self.name, self.features.dimension, len(self.units), self.sizes)

    def module(self, tensors: Tensors) -> torch.nn.Module:
        """The module with these weights, copied. Raises ModelError where they do not fit it."""
        self.check(tensors)
        module = self._shape()
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        module.load_state_dict(copies, assign=True)
        return module

    def check(self, tensors: Tensors) -> None:
        """Raise ModelError where these are no weights of the module; nothing is copied."""
        check_like(tensors, self._shape().state_dict())

    def stack(self) -> models.Stack:
        """Many models of this shape as one."""
        return models.stack(self._shape())

    def _shape(self) -> torch.nn.Module:
        """The module without weights."""
        with torch.device("meta"):
            return self.empty()

    @property
    def subsampling(self) -> int:
        """Frames for each step of the model's output."""
        return int(getattr(self._shape(), "subsampling", 1))

    @property
    def criterion(self) -> str:
        """What the model is trained by."""
        return models.criterion(self._shape())

    def layers(self) -> dict[str, tuple[str, ...]]:
        """The names of the model's trained values by layer, the input layer first."""
        return models.layers(self._shape())

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "name": self.name,
            **({"sizes": dict(self.sizes)} if self.sizes else {}),
            "features": self.features.model_dump(mode="json"),
            "units": self.units.to_json(),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "ModelDescription":
        """Raises ModelError where the content is not a description."""
        try:
            model = {**content.get("sizes", {}), "name": content["name"]}
            found = ModelDescription.of(
                _settings(ModelSettings, model, "sizes"),
                _settings(FeatureSettings, content["features"], "features"),
                Units.from_json(content["units"]),
            )
            models.find(found.name, found.sizes)
        except ConfigError as error:
            raise ModelError(f"not a description of a model: {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"not a description of a model: {error!r}") from None
        return found

    def write(self, path: Path) -> None:
        """Write the description as JSON."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n"
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _settings(schema: type[S], content: Any, section: str) -> S:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([section, *map(str, first["loc"])])
        raise ModelError(f"not a description of a model: {where}: {first['msg']}") from None


def read(path: Path) -> ModelDescription:
    """The description in a JSON file. Raises ModelError where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a description of a model: {error}") from None
    try:
        return ModelDescription.from_json(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def check_as_set(
    setting: str,
    path: Path,
    about: ModelDescription,
    section: str,
    model: ModelSettings,
    features: FeatureSettings,
    units: UnitSettings,
) -> None:
    """Raise ConfigError where a model that a setting names is another one than the others say.

    `section` is that of the settings of the architecture, such as `model`.
    """
    for key, theirs, ours in (
        (f"{section}.name", about.name, model.name),
        *_sizes(section, about, model),
        ("features", about.features.model_dump(), features.model_dump()),
        ("units.kind", about.units.kind, units.kind),
    ):
        if theirs != ours:
            raise ConfigError(f"{setting}: {path} has {key} = {theirs}, the settings say {ours}")


def _sizes(
    section: str, about: ModelDescription, model: ModelSettings
) -> Iterator[tuple[str, int, int]]:
    """Each setting of a size, with that of the model and that of the settings, if both are of one
    architecture.
    """
    if about.name == model.name:
        theirs = models.sized(models.find(about.name, about.sizes))
        ours = models.sized(models.find(model.name, model.sizes, section))
        yield from ((f"{section}.{size}", theirs[size], ours[size]) for size in ours)
