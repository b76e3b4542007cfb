"""The task that an experiment's settings name, with its speech."""

from pathlib import Path

from lhotse import CutSet

from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.corpus.partition import train_and_test
from fedspeech.training.neural_diff.recognition import Recognition
from fedspeech.training.neural_diff.task import Task
from fedspeech.training.neural_diff.understanding import Understanding


def task(settings: NeuralDiffConfig, speech: CutSet, folder: Path) -> Task:
    """The task on a corpus; `folder` is the cache of features.

    Raises ConfigError or CorpusError where settings and speech do not fit together.
    """
    train, test = train_and_test(speech, settings.test)
    if settings.recognition is not None:
        return Recognition(settings, settings.recognition, train, test, folder)
    assert settings.understanding is not None
    return Understanding(settings, settings.understanding, train, test, folder)
