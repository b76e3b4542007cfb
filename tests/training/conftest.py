import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedspeech import corpus, features
from fedspeech.config import Config
from fedspeech.corpus.partition import Partition, partition
from fedspeech.features import Utterance


@pytest.fixture(scope="session")
def tones(tone_corpus, tmp_path_factory) -> Path:
    """Four speakers, 12 utterances each."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), 4, rounds=2)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of commands that begin with an empty cache."""
    return os.environ | {"FEDSPEECH_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def settings(tones) -> Callable[..., Config]:
    """Settings under which all of this takes seconds; keyword arguments are those of `generic`."""

    def make(**generic) -> Config:
        return Config.model_validate(
            {
                "corpus": {"path": str(tones)},
                "partition": {
                    "generic": 3,
                    "development": 1,
                    "train": {"field": "round", "values": [1]},
                },
                "units": {"kind": "words"},
                "model": {"name": "tdnn-tiny"},
                "generic": {"epochs": 3, "batch_size": 8, "threads": 1, **generic},
            }
        )

    return make


@pytest.fixture(scope="session")
def parts(settings) -> Partition:
    config = settings()
    return partition(corpus.load(config.corpus), config.partition)


@pytest.fixture(scope="session")
def spoken(settings, parts, tmp_path_factory) -> list[Utterance]:
    """The generic part's 24 utterances, at three speeds."""
    folder = tmp_path_factory.mktemp("features")
    return features.prepare(list(parts.generic), settings().features, (0.9, 1.0, 1.1), folder)
