from pathlib import Path

import pytest
from federations import settings

from clients.speaker import Speaker
from fedspeech import corpus, features, seeding
from fedspeech.config.model import UnitSettings
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import partition
from fedspeech.models.description import ModelDescription
from fedspeech.simulation import devices
from fedspeech.tensors import state
from fedspeech.units import learn


@pytest.fixture(scope="session")
def parts(tone_corpus, tmp_path_factory):
    """Three speakers for G, two clients."""
    experiment = settings(tone_corpus(tmp_path_factory.mktemp("tones"), 5, per_round=3))
    return partition(corpus.load(experiment.corpus), experiment.partition)


@pytest.fixture(scope="session")
def description(parts) -> ModelDescription:
    units = learn([text_of(cut) for cut in parts.generic], UnitSettings(kind="words"))
    return ModelDescription("tdnn-tiny", settings(Path()).features, units)


@pytest.fixture(scope="session")
def generic(description):
    with seeding.scoped(0, 0, "", "a generic model"):
        return state(description.empty())


@pytest.fixture
def folders(parts, tmp_path) -> list[Path]:
    """The device folders of the two clients."""
    devices.lay_out(parts.clients, tmp_path / "devices", seed=0)
    return devices.folders(tmp_path / "devices")


@pytest.fixture
def speaker(folders, description, generic) -> Speaker:
    """The first client's device; it holds G."""
    me = Speaker(folders[0])
    me.describe_model(description.to_json())
    me.store.put("generic", generic)
    return me


@pytest.fixture
def client(parts, speaker):
    """The speech that lies on the first device."""
    by_name = {devices.pseudonym(0, client.speaker): client for client in parts.clients}
    return by_name[speaker.name]


@pytest.fixture
def heard(client, description, tmp_path):
    """Features of some of the client's cuts, made apart from the device."""

    def prepare(cuts, speeds=()):
        folder = tmp_path / "features of the test"
        return features.prepare(cuts, description.features, speeds, folder, client.train)

    return prepare
