"""Acoustic models: one architecture per file, and `MODELS`, the dict that names them."""

import difflib
from collections.abc import Callable

import torch

from fedspeech.errors import ConfigError
from fedspeech.models import rnnt
from fedspeech.models.rnnt import RNNT
from fedspeech.models.stacked_tdnn import StackedTDNN
from fedspeech.models.tdnn import TDNN, Layer

PAPER_LAYERS = (Layer(1), *(Layer(5, 1),) * 8, *(Layer(3, 3),) * 4)
"""13 layers of 512. The paper gives number and width, and 14 million parameters in all; the
kernels are ours, chosen to give that number."""

SMALL_LAYERS = (Layer(1), *(Layer(3, 1),) * 2, *(Layer(3, 2),) * 2, *(Layer(3, 3),) * 2)
"""Sees 45 frames to each side, which a whole word of a command corpus needs."""


def _transducer(shape: rnnt.Shape) -> Callable[[int, int], torch.nn.Module]:
    return lambda inputs, units: RNNT(inputs, units, shape)


MODELS: dict[str, Callable[[int, int], torch.nn.Module]] = {
    "tdnn": lambda inputs, units: TDNN(inputs, units, width=512, layers=PAPER_LAYERS),
    "tdnn-small": lambda inputs, units: TDNN(inputs, units, width=256, layers=SMALL_LAYERS),
    "tdnn-tiny": lambda inputs, units: TDNN(inputs, units, width=96, layers=SMALL_LAYERS),
    "rnnt": _transducer(rnnt.NEURAL_DIFF),
    "rnnt-teacher-41m": _transducer(rnnt.TEACHER_41M),
    "rnnt-student-22m": _transducer(rnnt.STUDENT_22M),
    "rnnt-teacher-57m": _transducer(rnnt.TEACHER_57M),
    "rnnt-student-30m": _transducer(rnnt.STUDENT_30M),
    "rnnt-small": _transducer(rnnt.SMALL),
    "rnnt-tiny": _transducer(rnnt.TINY),
    "rnnt-tiny-deep": _transducer(rnnt.TINY_DEEP),
    "rnnt-tiny-flat": _transducer(rnnt.TINY_FLAT),
}


def find(name: str) -> Callable[[int, int], torch.nn.Module]:
    """What builds the named model. Raises ConfigError for an unknown name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(
            f"model.name: unknown model {name!r}, expected one of {', '.join(sorted(MODELS))}{hint}"
        )
    return MODELS[name]


def build(name: str, inputs: int, units: int) -> torch.nn.Module:
    """The named model for features of `inputs` values and `units` output units (with the blank).

    Raises ConfigError for an unknown name.
    """
    return find(name)(inputs, units)


def stack(model: torch.nn.Module) -> StackedTDNN | None:
    """Many models of the model's shape as one, or None where its architecture has no such form."""
    return StackedTDNN(model) if isinstance(model, TDNN) else None


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
