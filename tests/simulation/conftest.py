import os
from pathlib import Path

import faulty_client
import pytest
import ray
from federations import HELPERS, LONG, settings, simulate

CLIENTS = 4


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        # Ray's workers inherit both.
        patch.setenv("PYTHONPATH", str(HELPERS), prepend=os.pathsep)
        patch.setenv(faulty_client.VARIABLE, str(tmp_path_factory.mktemp("faults")))
        yield


@pytest.fixture(scope="session")
def corpus(tone_corpus, tmp_path_factory) -> Path:
    """Three speakers for G and four clients."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), 3 + CLIENTS)


@pytest.fixture(scope="session")
def undisturbed(corpus, tmp_path_factory) -> Path:
    """A run in one process that nothing interrupts: all five bases."""
    return simulate(settings(corpus), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="session")
def undisturbed_long(corpus, tmp_path_factory) -> Path:
    """The same with a Flower strategy first, and two rounds of personalization."""
    folder = tmp_path_factory.mktemp("undisturbed-long") / "run"
    return simulate(settings(corpus, federation=LONG), folder)


@pytest.fixture(scope="module")
def one_ray():
    """One Ray for all runs of a file; workers are new in each."""
    # Not one that another process of the tests has started.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
