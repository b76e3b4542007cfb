import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def workers_find_the_benchmarks(tmp_path_factory):
    """Ray's workers inherit both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=os.pathsep)
        yield
