from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedspeech.config import NeuralDiffConfig

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
    lines = manifest.read_text().splitlines()
    with_meaning = [
        line[:-1] + ', "meaning": ' + line.split('"text": ')[1].split(",")[0] + "}"
        for line in lines
    ]
    manifest.write_text("\n".join(with_meaning) + "\n")

    def make(**changed: Any) -> dict[str, Any]:
        settings = recognition(corpus={"path": str(folder)}, ratios=[20.0])
        del settings["recognition"]
        domains = {"first": ["ba"], "second": ["di", "gu"], "third": ["ke"], "fourth": ["lo"]}
        settings["understanding"] = {"field": "meaning", "domains": domains, "first": 2}
        return settings | changed

    return make


@pytest.fixture(scope="session")
def settings() -> Callable[[dict[str, Any]], NeuralDiffConfig]:
    """The settings, validated."""
    return NeuralDiffConfig.model_validate
