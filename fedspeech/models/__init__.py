"""Acoustic models: one architecture per file, and `MODELS`, the dict that names them.

A name stands for an architecture with its sizes, of which settings may change some.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fedspeech.errors import ConfigError
from fedspeech.models import rnnt, tdnn
from fedspeech.models.rnnt import RNNT
from fedspeech.models.stacked_rnnt import StackedRNNT
from fedspeech.models.stacked_tdnn import StackedTDNN
from fedspeech.models.tdnn import TDNN, Layer

PAPER_LAYERS = (Layer(1), *(Layer(5, 1),) * 8, *(Layer(3, 3),) * 4)
"""13 layers of 512. The paper gives number and width, and 14 million parameters in all; the
kernels are ours, chosen to give that number."""

SMALL_LAYERS = (Layer(1), *(Layer(3, 1),) * 2, *(Layer(3, 2),) * 2, *(Layer(3, 3),) * 2)
"""Sees 45 frames to each side, which a whole word of a command corpus needs."""


class Model(NamedTuple):
    """An architecture with its sizes."""

    architecture: Callable[[int, int, Any], torch.nn.Module]
    """(features, output units with the blank, shape) -> the module"""
    shape: Any
    """A dataclass that raises ConfigError, which begins with the size at fault, where sizes do not
    go together."""

    def build(self, inputs: int, units: int) -> torch.nn.Module:
        """The module for features of `inputs` values and `units` output units (with the blank)."""
        return self.architecture(inputs, units, self.shape)


MODELS = {
    "tdnn": Model(TDNN, tdnn.Shape(512, PAPER_LAYERS)),
    "tdnn-small": Model(TDNN, tdnn.Shape(256, SMALL_LAYERS)),
    "tdnn-tiny": Model(TDNN, tdnn.Shape(96, SMALL_LAYERS)),
    "rnnt": Model(RNNT, rnnt.NEURAL_DIFF),
    "rnnt-teacher-41m": Model(RNNT, rnnt.TEACHER_41M),
    "rnnt-student-22m": Model(RNNT, rnnt.STUDENT_22M),
    "rnnt-teacher-57m": Model(RNNT, rnnt.TEACHER_57M),
    "rnnt-student-30m": Model(RNNT, rnnt.STUDENT_30M),
    "rnnt-small": Model(RNNT, rnnt.SMALL),
    "rnnt-tiny": Model(RNNT, rnnt.TINY),
    "rnnt-tiny-deep": Model(RNNT, rnnt.TINY_DEEP),
    "rnnt-tiny-flat": Model(RNNT, rnnt.TINY_FLAT),
}
UNCHANGED: Mapping[str, int] = MappingProxyType({})
"""The sizes that a name stands for."""


def find(name: str, sizes: Mapping[str, int] = UNCHANGED, setting: str = "model") -> Model:
    """The named model, with some of its sizes changed.

    Raises ConfigError, which begins with the `setting`, for an unknown name, sizes that the model
    does not have, and sizes that do not go together.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        known = ", ".join(sorted(MODELS))
        raise ConfigError(f"{setting}.name: unknown model {name!r}, expected one of {known}{hint}")
    model = MODELS[name]
    there = sized(model)
    for size in sizes:
        if size not in there:
            raise ConfigError(f"{setting}.{size}: a {name} has {', '.join(there)} instead")
    try:
        return model._replace(shape=dataclasses.replace(model.shape, **sizes))
    except ConfigError as error:
        raise ConfigError(f"{setting}.{error}") from None


def sized(model: Model) -> dict[str, int]:
    """The sizes of a model that settings may change."""
    sizes = dataclasses.asdict(model.shape)
    return {name: value for name, value in sizes.items() if isinstance(value, int)}


def build(
    name: str, inputs: int, units: int, sizes: Mapping[str, int] = UNCHANGED
) -> torch.nn.Module:
    """The named model for features of `inputs` values and `units` output units (with the blank).

    Raises ConfigError as `find` does.
    """
    return find(name, sizes).build(inputs, units)


Stack = StackedTDNN | StackedRNNT


def stack(model: torch.nn.Module) -> Stack:
    """Many models of the model's shape as one."""
    if isinstance(model, RNNT):
        return StackedRNNT(model)
    assert isinstance(model, TDNN)
    return StackedTDNN(model)


def criterion(model: torch.nn.Module) -> str:
    """What the model is trained and decoded by: it says so itself, or its output is CTC's."""
    return str(getattr(model, "criterion", "ctc"))


def parameters(model: torch.nn.Module) -> int:
    """The number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def layers(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of the model's trained values by layer, the input layer first.

    A layer is a numbered member of a list (`tdnn.0`) or a module directly under the model. What a
    normalization has measured is not among them: variances are so much larger than weights that
    they alone would decide how far apart two models are.
    """
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        first, second, *_ = [*name.split("."), ""]
        layer = f"{first}.{second}" if second.isdigit() else first
        found.setdefault(layer, []).append(name)
    return {layer: tuple(names) for layer, names in found.items()}
