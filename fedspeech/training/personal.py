"""Fine-tuning on one speaker's train_s."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from fedspeech.config.training import PersonalSettings
from fedspeech.errors import CorpusError
from fedspeech.features import Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors, state
from fedspeech.training.cohort import Cohort
from fedspeech.training.course import Course, fitting
from fedspeech.training.loop import Loop

VALIDATION_SHARE = 0.2
"""The last part of train_s, which judges alpha for a model that was fine-tuned on the rest."""


@dataclass(frozen=True)
class FineTuned:
    """A personal model, its mean loss per utterance in each epoch, and how much was skipped."""

    model: Tensors
    losses: list[float]
    skipped: int


def fine_tune(
    start: Tensors,
    description: ModelDescription,
    settings: PersonalSettings,
    utterances: Sequence[Utterance],
    name: tuple[int, int, str, str],
    proximal: float = 0.0,
) -> FineTuned:
    """Fine-tune a model on some utterances.

    Skipped are those that the vocabulary cannot spell, or spells with too many units for their
    length.

    `name` is (seed, round, speaker, purpose) of the draws; `proximal` is the mu of FedProx. Raises
    CorpusError where nothing is left to train on.
    """
    course = _course(description, settings, utterances, name)
    module = description.module(start)
    if proximal:
        pull_back(module, proximal)
    loop = Loop(module, course)
    losses = [loop.epoch(number) for number in range(settings.epochs)]
    return FineTuned(state(module), losses, len(utterances) - len(course.utterances))


class Tuning(NamedTuple):
    """One speaker's fine-tuning in a cohort: as the arguments of `fine_tune`."""

    start: Tensors
    utterances: Sequence[Utterance]
    name: tuple[int, int, str, str]


def fine_tune_together(
    description: ModelDescription, settings: PersonalSettings, tunings: Sequence[Tuning]
) -> list[FineTuned | None]:
    """`fine_tune` for many speakers as one stack, equal but for rounding.

    None for who has nothing to train on.
    """
    found: list[FineTuned | None] = [None] * len(tunings)
    courses: dict[int, Course] = {}
    for number, each in enumerate(tunings):
        with suppress(CorpusError):
            courses[number] = _course(description, settings, each.utterances, each.name)
    if courses:
        starts = [tunings[number].start for number in courses]
        trained = [name for name, _ in description.module(starts[0]).named_parameters()]
        cohort = Cohort(description.stack(), trained, starts, list(courses.values()))
        for number, model, member in zip(courses, cohort.run(), cohort.members, strict=True):
            skipped = len(tunings[number].utterances) - len(courses[number].utterances)
            found[number] = FineTuned(model, member.losses, skipped)
    return found


def validation_split(
    utterances: Sequence[Utterance],
) -> tuple[Sequence[Utterance], Sequence[Utterance]]:
    """The first 80 % and the last 20 % of train_s, at least one utterance each."""
    held_out = max(1, round(VALIDATION_SHARE * len(utterances)))
    return utterances[:-held_out], utterances[-held_out:]


def pull_back(module: torch.nn.Module, mu: float) -> None:
    """Add FedProx's term to the loss from now on: mu / 2 * ||w - w_0||^2, w_0 what w is now.

    It enters as its gradient, mu * (w - w_0) (Li et al. 2020, Federated Optimization in
    Heterogeneous Networks, equation 2).
    """
    for parameter in module.parameters():
        gradient = partial(_with_pull, parameter, parameter.detach().clone(), mu)
        parameter.register_hook(gradient)  # type: ignore[no-untyped-call]


def _with_pull(
    parameter: torch.nn.Parameter, begin: torch.Tensor, mu: float, gradient: torch.Tensor
) -> torch.Tensor:
    return gradient + mu * (parameter.detach() - begin)


def _course(
    description: ModelDescription,
    settings: PersonalSettings,
    utterances: Sequence[Utterance],
    name: tuple[int, int, str, str],
) -> Course:
    spelled = [utterance for utterance in utterances if _spells(description, utterance)]
    if not spelled:
        raise CorpusError("the vocabulary spells none of this speaker's utterances")
    taught = fitting(spelled, description)
    if not taught:
        raise CorpusError("all of this speaker's utterances have too many units for their length")
    return Course(settings, description.features, description.units, taught, name)


def _spells(description: ModelDescription, utterance: Utterance) -> bool:
    try:
        return bool(description.units.encode(utterance.text))
    except CorpusError:
        return False
