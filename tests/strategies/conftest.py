import os
from pathlib import Path

import pytest
from federations import GENERIC_SPEAKERS


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        yield


@pytest.fixture(scope="session")
def corpus(tone_corpus, tmp_path_factory) -> Path:
    """Three speakers for G and four clients."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), GENERIC_SPEAKERS + 4, per_round=4)
