"""Setting 1 of the paper: a recognizer whose training speech grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut

from fedspeech import evaluation, features, seeding, units
from fedspeech.config.neural_diff import NeuralDiffConfig, RecognitionSettings
from fedspeech.config.training import Optimization
from fedspeech.corpus.cuts import text_of
from fedspeech.errors import CorpusError
from fedspeech.evaluation import Counts, by_speaker
from fedspeech.models.description import ModelDescription
from fedspeech.training.course import Course, fitting
from fedspeech.training.neural_diff.task import Task


class Recognition(Task):
    """D_t is a share of the training speech; each seed draws an order of its own."""

    metric = "WER"

    def __init__(
        self,
        settings: NeuralDiffConfig,
        recognition: RecognitionSettings,
        train: Sequence[MonoCut],
        test: Sequence[MonoCut],
        folder: Path,
    ) -> None:
        self._shares = recognition.shares
        self._test = features.prepare(test, settings.features, (), folder)
        spelled = units.learn([text_of(cut) for cut in train], recognition.units)
        self._description = ModelDescription.of(recognition.model, settings.features, spelled)
        spoken = features.prepare(train, settings.features, settings.speeds, folder)
        self._train = fitting(spoken, self._description)
        if not self._train:
            raise CorpusError("all training utterances have too many units for their length")
        self.skipped = len(spoken) - len(self._train)
        durations = {cut.id: cut.duration for cut in train}
        self._seconds = [durations[utterance.id] for utterance in self._train]

    @property
    def generations(self) -> list[dict[str, Any]]:
        """Shares of the training speech, with their hours."""
        hours = sum(self._seconds) / 3600
        return [
            {"label": f"{100 * share:g} %", "train_hours": share * hours} for share in self._shares
        ]

    def model(self, generation: int) -> torch.nn.Module:
        """The same shape in all generations."""
        return self._description.empty()

    def course(self, generation: int, settings: Optimization, seed: int, purpose: str) -> Course:
        """The first so many seconds of the training speech in the seed's order."""
        order = seeding.generator(seed, 0, "", "order of the training speech")
        places = order.permutation(len(self._train))
        most = self._shares[generation] * sum(self._seconds) + 1e-6
        chosen, seconds = [], 0.0
        for place in places:
            seconds += self._seconds[place]
            if seconds > most:
                break
            chosen.append(self._train[place])
        description = self._description
        name = (seed, 0, "", purpose)
        return Course(settings, description.features, description.units, chosen, name)

    def errors(self, model: torch.nn.Module, known: int, generation: int) -> dict[str, Counts]:
        """Word errors; the test is the same in all generations."""
        description = self._description
        counts = evaluation.word_errors(model, self._test, description.features, description.units)
        return by_speaker(self._test, counts)
