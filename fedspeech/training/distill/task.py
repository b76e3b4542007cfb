"""What the models of a distillation learn from, what they are judged on, and what they are."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet, MonoCut

from fedspeech import evaluation, features, models, seeding, tensors
from fedspeech.config.distillation import KD, STUDENT, TEACHER, DistillationConfig
from fedspeech.config.model import ModelSettings
from fedspeech.config.settings_file import dotted
from fedspeech.corpus.cuts import speaker_of, text_of
from fedspeech.corpus.partition import field_of, train_and_test
from fedspeech.errors import ConfigError, CorpusError
from fedspeech.evaluation import Counts
from fedspeech.models import description
from fedspeech.models.description import ModelDescription
from fedspeech.models.rnnt import RNNT
from fedspeech.tensors import Tensors
from fedspeech.training.course import Course, fitting
from fedspeech.training.distill import modules, schedules
from fedspeech.units import Units, learn

MOST_TOLD = 8
"""Units that a message lists."""


class Task:
    """The speech, and both models' shapes.

    `skipped` counts training utterances with too many units for their length.
    """

    def __init__(self, settings: DistillationConfig, speech: CutSet, folder: Path) -> None:
        """`folder` is the cache of features. Raises ConfigError or CorpusError where settings,
        speech and a given teacher do not fit together.
        """
        train, test = train_and_test(speech, settings.test)
        self._settings = settings
        self._sets = _sets(settings, test)
        spelled = _units(settings, [text_of(cut) for cut in train])
        self.teacher = ModelDescription.of(settings.teacher, settings.features, spelled)
        self.student = ModelDescription.of(settings.student, settings.features, spelled)
        spoken = features.prepare(train, settings.features, settings.speeds, folder)
        self._taught = fitting(spoken, self.student)
        if not self._taught:
            raise CorpusError("all training utterances have too many units for their length")
        self.skipped = len(spoken) - len(self._taught)
        self._check_phases()
        self._test = features.prepare(test, settings.features, (), folder)

    def _check_phases(self) -> None:
        """Raise ConfigError where a schedule does not reach 1 before the last update."""
        course = self.course(self._settings.seed)
        updates = course.updates_per_epoch * course.settings.epochs
        for row in self._settings.rows:
            replacing = self._settings.replacing.get(row)
            if replacing is not None and schedules.rate(replacing, 1 - 1 / updates) < 1:
                name = dotted(["replacing", row])
                raise ConfigError(
                    f"{name}: with {updates} updates a {replacing.schedule} schedule over "
                    f"{replacing.phase:g} of them never reaches 1, so the student would never work "
                    "alone; expected a shorter phase, or more updates"
                )

    @property
    def sets(self) -> dict[str, set[str]]:
        """The speakers of each part that tests, by the value of the field that chose it."""
        return self._sets

    def model(self, row: str, seed: int) -> RNNT:
        """The teacher, or the student of any other row, freshly drawn: alike in all rows."""
        about, which = (self.teacher, TEACHER) if row == TEACHER else (self.student, STUDENT)
        with seeding.scoped(seed, 0, "", f"distillation, initialization of the {which}"):
            model = about.empty()
        assert isinstance(model, RNNT)
        return model

    def course(self, seed: int) -> Course:
        """The training speech; the minibatches are the same in all rows and, where nothing draws
        dropout in between, their augmentation.
        """
        about, name = self.student, (seed, 0, "", "distillation")
        training = self._settings.training
        return Course(training, about.features, about.units, self._taught, name, training.buckets)

    def errors(self, model: torch.nn.Module) -> dict[str, Counts]:
        """Word errors by speaker."""
        about, beam = self.student, self._settings.beam
        counts = evaluation.word_errors(model, self._test, about.features, about.units, beam)
        return evaluation.by_speaker(self._test, counts)


def check(settings: DistillationConfig) -> None:
    """What can be told before any speech is read.

    Raises ConfigError where a model is unknown or no RNN-T, modules do not match, or a given
    teacher is another one than the settings say; ModelError where it is none.
    """
    with torch.device("meta"):
        teacher, student = (
            _transducer(name, model, settings)
            for name, model in ((TEACHER, settings.teacher), (STUDENT, settings.student))
        )
    if any(row in settings.replacing for row in settings.rows):
        modules.cut(teacher, student, settings.modules)
    if KD in settings.rows and teacher.subsampling != student.subsampling:
        raise ConfigError(
            f"kd: a step is {teacher.subsampling} frames in the teacher, "
            f"{student.subsampling} in the student"
        )
    if settings.teacher.file is not None:
        given(settings)


def given(settings: DistillationConfig) -> Tensors:
    """The teacher that the settings name a file of. Raises as `check` does."""
    assert settings.teacher.file is not None
    path = Path(settings.teacher.file)
    if not path.name:
        raise ConfigError(f"teacher.file: expected a safetensors file, found {str(path)!r}")
    about = description.read(path.with_suffix(".json"))
    description.check_as_set(
        "teacher.file", path, about, TEACHER, settings.teacher, settings.features, settings.units
    )
    found = tensors.read(path)
    about.module(found)
    return found


def _transducer(section: str, model: ModelSettings, settings: DistillationConfig) -> RNNT:
    """Freshly drawn, for a vocabulary of two: no size between modules depends on it."""
    found = models.find(model.name, model.sizes, section).build(settings.features.dimension, 2)
    if not isinstance(found, RNNT):
        raise ConfigError(f"{section}.name: {model.name} is no RNN-T")
    return found


def _units(settings: DistillationConfig, texts: Sequence[str]) -> Units:
    """Those of a given teacher, whatever speech they were learned from; else of the transcripts.

    Raises ConfigError where the teacher cannot spell these.
    """
    if settings.teacher.file is None:
        return learn(texts, settings.units)
    path = Path(settings.teacher.file).with_suffix(".json")
    theirs = description.read(path).units
    if lacking := sorted(set().union(*map(theirs.lacking, texts))):
        raise ConfigError(
            f"teacher.file: {path} spells with {_listed(theirs.vocabulary[1:])}; of the training "
            f"speech it lacks {_listed(lacking)}"
        )
    return theirs


def _listed(units: Sequence[str]) -> str:
    """How many, and the first of them."""
    first = " ".join(units[:MOST_TOLD]) + " …" * (len(units) > MOST_TOLD)
    return f"{len(units)} unit{'s' * (len(units) != 1)} ({first})"


def _sets(settings: DistillationConfig, test: Sequence[MonoCut]) -> dict[str, set[str]]:
    """One set for each value of `test.values` where there are several, with its speakers."""
    if len(settings.test.values) < 2:
        return {}
    found: dict[Any, set[str]] = {value: set() for value in settings.test.values}
    for cut in test:
        found[field_of(cut, settings.test.field or "", "test.field")].add(speaker_of(cut))
    for one, other in itertools.combinations(found, 2):
        if both := found[one] & found[other]:
            raise CorpusError(
                f"speaker {min(both)} is in the test sets {one} and {other}: errors are told by "
                "speaker, so that each may be in one only"
            )
    return {str(value): speakers for value, speakers in found.items() if speakers}
