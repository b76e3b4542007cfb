"""What learners learn from, what their model is judged on, and what it is."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from fedspeech import evaluation, features, models, seeding, units
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.corpus import statistics
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import train_and_test
from fedspeech.errors import ConfigError, CorpusError
from fedspeech.evaluation import Counts
from fedspeech.features import Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.training.course import fitting
from fedspeech.training.parallel.share import PURPOSE, Share

APART: Any = {"corpus": {"path"}, "engine": True, "seeds": True, "name": True, "parallel": True}
"""Settings by which learners may differ without learning another model."""


class Task:
    """The speech, and the model's shape.

    `skipped` counts training utterances with too many units for their length.
    """

    def __init__(self, settings: DataParallelConfig, speech: CutSet, folder: Path) -> None:
        """`folder` is the cache of features. Raises ConfigError or CorpusError where settings and
        speech do not fit together.
        """
        self._counted = settings.counted
        train, test = train_and_test(speech, settings.test)
        self.corpus = statistics.fingerprint(speech)
        self._sound = statistics.sound(train, folder)
        spelled = units.learn([text_of(cut) for cut in train], settings.units)
        self.description = ModelDescription.of(settings.model, settings.features, spelled)
        speeds = settings.training.augmentation.speeds
        spoken = features.prepare(train, settings.features, speeds, folder)
        self.taught: Sequence[Utterance] = fitting(spoken, self.description)
        if not self.taught:
            raise CorpusError("all training utterances have too many units for their length")
        self.skipped = len(spoken) - len(self.taught)
        self._test = features.prepare(test, settings.features, (), folder)

    def model(self, seed: int) -> torch.nn.Module:
        """The model, freshly drawn: alike whatever the method and the number of learners."""
        with seeding.scoped(seed, 0, "", f"{PURPOSE}, initialization"):
            return self.description.empty()

    def share(self, settings: DataParallelConfig, seed: int) -> Share:
        """The training speech, cut among the learners.

        Raises ConfigError where there are more learners than utterances.
        """
        about, learners, spoken = self.description, settings.parallel.learners, len(self.taught)
        if learners > spoken:
            raise ConfigError(
                f"{self._counted}: {learners} learners, but {spoken} utterances to learn"
            )
        return Share(settings.training, about.features, about.units, self.taught, seed, learners)

    def fingerprint(self, settings: DataParallelConfig, seed: int) -> str:
        """Of what all learners have to agree upon: speech, transcripts and settings."""
        said = settings.model_dump(mode="json", exclude=APART)
        name = json.dumps([self.corpus, self._sound, said, seed], sort_keys=True)
        return hashlib.sha256(name.encode()).hexdigest()

    def errors(self, model: torch.nn.Module) -> dict[str, Counts]:
        """Word errors by speaker, greedily decoded."""
        about = self.description
        counts = evaluation.word_errors(model, self._test, about.features, about.units)
        return evaluation.by_speaker(self._test, counts)


def check(settings: DataParallelConfig) -> None:
    """What can be told before any speech is read. Raises ConfigError as `models.find` does."""
    models.find(settings.model.name, settings.model.sizes)
