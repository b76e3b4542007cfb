"""Teacher and student cut into modules, of which each side's can stand in for the other's."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fedspeech.config.distillation import Cut, ModuleSettings
from fedspeech.errors import ConfigError
from fedspeech.models.rnnt import RNNT, Network

OWN = ("embedding", "encoded", "predicted", "output")
"""What is not replaced and always the student's: embedding, joint network and output layer."""


class Module(NamedTuple):
    """Neighbouring layers of the teacher, and those of the student that stand in their place."""

    teacher: list[nn.Module]
    student: list[nn.Module]


def cut(teacher: RNNT, student: RNNT, settings: ModuleSettings) -> dict[Network, list[Module]]:
    """The modules of both networks. Raises ConfigError where one does not fit in the other's place.

    All of a network's layers are in its modules, in their order.
    """
    _check_frame(teacher, student)
    cuts: dict[Network, Cut] = {"encoder": settings.encoder, "prediction": settings.prediction}
    return {network: _cut(network, teacher, student, cuts[network]) for network in cuts}


def _cut(network: Network, teacher: RNNT, student: RNNT, counts: Cut) -> list[Module]:
    layers = teacher.layers(network), student.layers(network)
    if (sum(counts.teacher), sum(counts.student)) != tuple(map(len, layers)):
        raise ConfigError(
            f"modules.{network}: expected all layers of both models, found "
            f"{list(counts.teacher)} of {len(layers[0])} in the teacher and "
            f"{list(counts.student)} of {len(layers[1])} in the student"
        )
    sides = map(_parts, layers, (counts.teacher, counts.student))
    modules = [Module(*pair) for pair in zip(*sides, strict=True)]
    for number, module in enumerate(modules, 1):
        theirs, ours = _sizes(module.teacher), _sizes(module.student)
        if theirs != ours:
            raise ConfigError(
                f"modules.{network}: module {number} of {len(modules)} takes {theirs[0]} values "
                f"and gives {theirs[1]} in the teacher, takes {ours[0]} and gives {ours[1]} in "
                "the student"
            )
    return modules


def _parts(layers: Sequence[nn.Module], counts: Sequence[int]) -> list[list[nn.Module]]:
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [list(layers[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def _sizes(layers: Sequence[nn.Module]) -> tuple[int, int]:
    """Values that go in at each step, and that come out."""
    first, last = layers[0], layers[-1]
    assert isinstance(first, nn.LSTM) and isinstance(last, nn.LSTM)
    return first.input_size, last.proj_size or last.hidden_size


def _check_frame(teacher: RNNT, student: RNNT) -> None:
    """What is around the modules: the steps that go through them, and what starts as the teacher's.

    Raises ConfigError where they differ.
    """
    for name in ("stacking", "subsampling", "bypass", "embedding", "joint"):
        theirs, ours = (getattr(model.shape, name) for model in (teacher, student))
        if theirs != ours:
            raise ConfigError(f"modules: {name} is {theirs} in the teacher, {ours} in the student")
