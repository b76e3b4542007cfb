"""Setting 2 of the paper: phrases in domains, of which each generation knows one more."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut

from fedspeech import features, units
from fedspeech.accelerator import place
from fedspeech.config.model import UnitSettings
from fedspeech.config.neural_diff import NeuralDiffConfig, UnderstandingSettings
from fedspeech.config.training import Optimization
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import field_of
from fedspeech.errors import ConfigError, CorpusError
from fedspeech.evaluation import BATCH, Counts, by_speaker
from fedspeech.features import Utterance
from fedspeech.models.contrastive import Contrastive
from fedspeech.training.course import Course
from fedspeech.training.neural_diff.task import Task
from fedspeech.units import BLANK, Units


@dataclass(frozen=True)
class Phrases:
    """What a generation knows: its phrases by number, and the tokens that they are made of."""

    numbers: Mapping[str, int]
    tokens: Units

    def encode(self, text: str) -> list[int]:
        """The phrase's number. Raises CorpusError for a phrase that is not known."""
        if text not in self.numbers:
            raise CorpusError(f"no training speech has the phrase {text!r}")
        return [self.numbers[text]]

    def told(self, model: torch.nn.Module) -> Contrastive:
        """The model, knowing these phrases."""
        assert isinstance(model, Contrastive)
        model.know([self.tokens.encode(phrase) for phrase in self.numbers])
        return model


class Understanding(Task):
    """D_t is the speech of the domains that are known at t, and so is the test."""

    metric = "error"

    def __init__(
        self,
        settings: NeuralDiffConfig,
        understanding: UnderstandingSettings,
        train: Sequence[MonoCut],
        test: Sequence[MonoCut],
        folder: Path,
    ) -> None:
        names, first = list(understanding.domains), understanding.first
        self._features = settings.features
        self._added = [names[:first], *([name] for name in names[first:])]
        known = [set(names[: first + t]) for t in range(len(self._added))]
        domains = _domains(train, understanding)
        _check(domains, understanding)
        spoken = features.prepare(train, settings.features, settings.speeds, folder)
        heard = features.prepare(test, settings.features, (), folder)
        self._train = [_of(spoken, domains, some) for some in known]
        self._test = [_of(heard, _domains(test, understanding), some) for some in known]
        self._phrases = _growing(_phrases(train, domains, self._added), understanding)
        for utterance in self._test[-1]:
            self._phrases[-1].encode(utterance.text)

    @property
    def generations(self) -> list[dict[str, Any]]:
        """The domains that are added, with the number of phrases that are known."""
        return [
            {
                "label": ("" if t == 0 else "+ ") + ", ".join(added),
                "phrases": len(self._phrases[t].numbers),
                "train_utterances": len(self._train[t]),
                "test_utterances": len(self._test[t]),
            }
            for t, added in enumerate(self._added)
        ]

    def model(self, generation: int) -> torch.nn.Module:
        """The embedding has a row for each token that is known."""
        phrases = self._phrases[generation]
        return phrases.told(Contrastive(self._features.dimension, len(phrases.tokens)))

    def course(self, generation: int, settings: Optimization, seed: int, purpose: str) -> Course:
        """All training speech of the known domains."""
        name = (seed, 0, "", purpose)
        phrases, utterances = self._phrases[generation], self._train[generation]
        return Course(settings, self._features, phrases, utterances, name)

    @torch.inference_mode()
    def errors(self, model: torch.nn.Module, known: int, generation: int) -> dict[str, Counts]:
        """Utterances whose nearest phrase is a wrong one; each counts as one word."""
        phrases, utterances = self._phrases[known], self._test[generation]
        told = phrases.told(model.to(place())).eval()
        wrong = []
        for start in range(0, len(utterances), BATCH):
            some = utterances[start : start + BATCH]
            batch = features.batch(some, self._features).to(place())
            nearest = told(batch.features, batch.lengths)[0].argmin(1).tolist()
            wrong += [phrases.numbers.get(u.text) != n for u, n in zip(some, nearest, strict=True)]
        counts = Counts(np.array(wrong, dtype=np.int64), np.ones(len(wrong), dtype=np.int64))
        return by_speaker(utterances, counts)


def _domains(cuts: Sequence[MonoCut], settings: UnderstandingSettings) -> list[str]:
    """The domain of each utterance; "" where it belongs to none."""
    domains = {value: name for name, values in settings.domains.items() for value in values}
    found = [field_of(cut, settings.field, "understanding.field") for cut in cuts]
    return [domains.get(value, "") for value in found]


def _check(domains: Sequence[str], settings: UnderstandingSettings) -> None:
    for name, values in settings.domains.items():
        if name not in domains:
            raise ConfigError(
                f"understanding.domains.{name}: no training speech has {settings.field} = "
                f"{', '.join(map(repr, values))}"
            )


def _of(
    utterances: Sequence[Utterance], domains: Sequence[str], known: Set[str]
) -> list[Utterance]:
    return [u for u, domain in zip(utterances, domains, strict=True) if domain in known]


def _phrases(
    cuts: Sequence[MonoCut], domains: Sequence[str], added: Sequence[Sequence[str]]
) -> list[list[str]]:
    """What is said in the known domains, for each generation: what is added comes last."""
    said: dict[str, set[str]] = {}
    for cut, domain in zip(cuts, domains, strict=True):
        said.setdefault(domain, set()).add(text_of(cut))
    known: list[str] = []
    found = []
    for name in (name for names in added for name in names):
        known += [phrase for phrase in sorted(said[name]) if phrase not in known]
        found.append(list(known))
    return found[len(added[0]) - 1 :]


def _growing(
    generations: Sequence[Sequence[str]], settings: UnderstandingSettings
) -> list[Phrases]:
    """New tokens come after those that are known, so that an embedding only gets more rows."""
    vocabulary, found = [BLANK], []
    for phrases in generations:
        learned = units.learn(phrases, UnitSettings(kind=settings.tokens)).vocabulary
        vocabulary += [token for token in learned if token not in vocabulary]
        numbers = {phrase: number for number, phrase in enumerate(phrases)}
        found.append(Phrases(numbers, Units(settings.tokens, vocabulary)))
    return found
