"""A corpus handed out to a server and its boxes is the corpus that it was."""

import numpy as np
import pytest

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings, PartitionSettings
from fedspeech.corpus import one_speaker, partition
from fedspeech.corpus.cuts import samples, speaker_of, text_of
from fedspeech.corpus.handing_out import hand_out


@pytest.fixture
def parts(tone_corpus, tmp_path):
    folder = tone_corpus(tmp_path / "tones", 5, per_round=3)
    speech = corpus.load(CorpusSettings(path=str(folder)))
    train = {"field": "round", "values": (1, 2)}
    return partition.partition(
        speech, PartitionSettings.model_validate({"generic": 3, "train": train})
    )


def test_each_box_holds_its_owners_speech(parts, tmp_path):
    written = dict(hand_out(parts, tmp_path / "out"))
    assert written == {
        tmp_path / "out" / "public": 36,
        tmp_path / "out" / "t03": 12,
        tmp_path / "out" / "t04": 12,
    }
    for client in parts.clients:
        found = [e.cut for e in one_speaker.entries(tmp_path / "out" / client.speaker)]
        before = [*client.train, *client.test]
        assert [text_of(cut) for cut in found] == [text_of(cut) for cut in before]
        for one, other in zip(found, before, strict=True):
            assert np.array_equal(samples(one), samples(other))
        again = partition.client(
            "owner",
            found,
            PartitionSettings.model_validate({"train": {"field": "round", "values": (1, 2)}}).train,
        )
        assert len(again.train) == len(client.train)


def test_the_server_holds_all_but_the_clients(parts, tmp_path):
    list(hand_out(parts, tmp_path / "out"))
    public = corpus.load(CorpusSettings(path=str(tmp_path / "out" / "public")))
    assert {speaker_of(cut) for cut in public} == {"t00", "t01", "t02"}
    for path in tmp_path.glob("out/*/audio/*"):
        assert path.stem.isdecimal(), "no name is in a file's"
