import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedspeech import corpus
from fedspeech.config import NeuralDiffConfig
from fedspeech.training.neural_diff import tasks
from fedspeech.training.neural_diff.task import Task

QUICK = {
    "epochs": 2,
    "batch_size": 8,
    "precision": "fp32",
    "augmentation": {"speeds": [1.0]},
}


@pytest.fixture(scope="session")
def tones(tone_corpus, tmp_path_factory) -> Path:
    """Four speakers, 12 utterances each."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), 4, rounds=2)


@pytest.fixture(scope="session")
def recognition(tones) -> Callable[..., dict[str, Any]]:
    """Settings of a recognizer's three generations; keyword arguments change sections."""

    def make(**changed: Any) -> dict[str, Any]:
        return {
            "kind": "neural-diff",
            "seeds": [0, 1],
            "corpus": {"path": str(tones)},
            "test": {"speakers": 1},
            "recognition": {"shares": [0.5, 0.8, 1.0], "units": {"kind": "words"}},
            "training": QUICK,
            "sparse": QUICK,
            "hash": QUICK,
            **changed,
        }

    return make


@pytest.fixture(scope="session")
def understanding(recognition, tone_corpus, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """Settings of a contrastive model's three generations; utterances are single words."""
    folder = tone_corpus(tmp_path_factory.mktemp("phrases"), 4, rounds=2, most_words=1)
    manifest = folder / "manifest.jsonl"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [json.dumps(entry | {"meaning": entry["text"]}) + "\n" for entry in entries]
    manifest.write_text("".join(lines))

    def make(**changed: Any) -> dict[str, Any]:
        settings = recognition(corpus={"path": str(folder)}, ratios=[20.0])
        del settings["recognition"]
        domains = {"first": ["ba"], "second": ["di", "gu"], "third": ["ke"], "fourth": ["lo"]}
        settings["understanding"] = {"field": "meaning", "domains": domains, "first": 2}
        return settings | changed

    return make


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> Callable[[NeuralDiffConfig], Task]:
    """The task of some settings, with its features in a folder of this session."""
    folder = tmp_path_factory.mktemp("features")
    return lambda settings: tasks.task(settings, corpus.load(settings.corpus), folder)


@pytest.fixture(scope="session")
def settings() -> Callable[[dict[str, Any]], NeuralDiffConfig]:
    """The settings, validated."""
    return NeuralDiffConfig.model_validate
