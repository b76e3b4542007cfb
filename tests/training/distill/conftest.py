from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedspeech import corpus, models, seeding
from fedspeech.config import DistillationConfig
from fedspeech.config.distillation import ModuleSettings
from fedspeech.models.rnnt import RNNT, Shape
from fedspeech.training.distill.task import Task

UNITS, FEATURES = 5, 8
DEEP = Shape(3, 16, 2, 12, embedding=8, joint=16, subsampling=6)
FLAT = Shape(2, 16, 1, 12, embedding=8, joint=16, subsampling=6)
QUICK = {
    "epochs": 3,
    "batch_size": 8,
    "precision": "fp32",
    "augmentation": {"speeds": [1.0]},
}


def make(encoder: int, prediction: int, seed: int, **sizes: int) -> RNNT:
    """A transducer with so many layers; keyword arguments are sizes of its shape."""
    usual = {"embedding": 6, "joint": 10, "stacking": 3, "subsampling": 6}
    widths = {"encoder_units": 12, "prediction_units": 7}
    given = usual | widths | sizes
    shape = Shape(encoder_layers=encoder, prediction_layers=prediction, **given)
    with seeding.scoped(seed, 0, "", "a model"):
        return RNNT(FEATURES, UNITS, shape)


@pytest.fixture
def transducer() -> Callable[..., RNNT]:
    return make


@pytest.fixture
def teacher() -> RNNT:
    return make(5, 2, seed=1)


@pytest.fixture
def student() -> RNNT:
    return make(3, 1, seed=2)


@pytest.fixture
def halved() -> ModuleSettings:
    """Modules of that teacher and that student."""
    return ModuleSettings.model_validate(
        {
            "encoder": {"teacher": [1, 2, 2], "student": [1, 1, 1]},
            "prediction": {"teacher": [2], "student": [1]},
        }
    )


@pytest.fixture(autouse=True)
def small_models(monkeypatch) -> None:
    """Two transducers that learn in no time, `deep` and `flat`."""
    monkeypatch.setitem(models.MODELS, "deep", models.Model(RNNT, DEEP))
    monkeypatch.setitem(models.MODELS, "flat", models.Model(RNNT, FLAT))


@pytest.fixture(scope="session")
def tones(tone_corpus, tmp_path_factory) -> Path:
    """Four speakers, 12 utterances each."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), 4, rounds=2)


@pytest.fixture(scope="session")
def tables(tones) -> Callable[..., dict[str, Any]]:
    """Settings of a small distillation as a table; keyword arguments change sections."""

    def make(**changed: Any) -> dict[str, Any]:
        cuts = {"encoder": {"teacher": [1, 2], "student": [1, 1]}}
        return {
            "kind": "distillation",
            "seeds": [0],
            "corpus": {"path": str(tones)},
            "test": {"speakers": 1},
            "features": {"kind": "log-mel", "dimension": 16},
            "units": {"kind": "words"},
            "teacher": {"name": "deep"},
            "student": {"name": "flat"},
            "modules": cuts,
            "training": QUICK,
            **changed,
        }

    return make


@pytest.fixture
def settings(tables) -> Callable[..., DistillationConfig]:
    """The same, validated."""
    return lambda **changed: DistillationConfig.model_validate(tables(**changed))


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> Callable[[DistillationConfig], Task]:
    """The task of some settings, with its features in a folder of this session."""
    folder = tmp_path_factory.mktemp("features")
    return lambda settings: Task(settings, corpus.load(settings.corpus), folder)
