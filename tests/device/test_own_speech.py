"""A box cuts its owner's speech itself."""

import json

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from fedspeech.config.corpus import PartitionSettings
from fedspeech.corpus.cuts import samples
from fedspeech.device import own_speech
from fedspeech.errors import CorpusError

RATE = 16_000


@pytest.fixture
def speech(tmp_path):
    """Ten recordings of 1 s with transcripts; the third is silent."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for number in range(10):
        record(folder, number, silent=number == 2)
    return folder


def tone(number):
    return np.sin(np.arange(RATE) * (0.05 + 0.01 * number)) / 2


def record(folder, number, silent=False):
    wave = np.zeros(RATE) if silent else tone(number)
    soundfile.write(folder / f"{number:02}.wav", wave, RATE)
    (folder / f"{number:02}.txt").write_text(f"word{number}\n")


def parts(seconds, least=1.0):
    return PartitionSettings.model_validate({"train": {"seconds": seconds}, "least_seconds": least})


def texts(path):
    return [cut.supervisions[0].text for cut in CutSet.from_jsonl(path)]


def test_usable_speech_is_cut_as_the_server_says(speech, tmp_path):
    device = tmp_path / "device"
    own_speech.cut(speech, device, parts(5.0), anew=True)
    assert texts(device / "train.jsonl") == ["word0", "word1", "word3", "word4", "word5"]
    assert texts(device / "test.jsonl") == ["word6", "word7", "word8", "word9"]


def test_within_a_run_it_stays_what_it_was(speech, tmp_path):
    device = tmp_path / "device"
    own_speech.cut(speech, device, parts(5.0), anew=True)
    record(speech, 10)
    own_speech.cut(speech, device, parts(5.0), anew=False)
    assert "word10" not in texts(device / "test.jsonl")
    own_speech.cut(speech, device, parts(5.0), anew=True)
    assert "word10" in texts(device / "test.jsonl")


def test_other_settings_cut_it_anew(speech, tmp_path):
    device = tmp_path / "device"
    own_speech.cut(speech, device, parts(5.0), anew=True)
    own_speech.cut(speech, device, parts(7.0), anew=False)
    assert len(texts(device / "train.jsonl")) == 7


def test_killed_in_the_middle_it_is_cut_once_more(speech, tmp_path):
    device = tmp_path / "device"
    own_speech.cut(speech, device, parts(5.0), anew=True)
    (device / "cut.json").unlink()
    (device / "train.jsonl").write_text("")
    own_speech.cut(speech, device, parts(5.0), anew=False)
    assert len(texts(device / "train.jsonl")) == 5
    assert json.loads((device / "cut.json").read_text())["seconds"] == 1.0


def test_of_recordings_with_several_channels_one_is_taken(tmp_path):
    """The second; in the first nothing is heard."""
    speech, device = tmp_path / "stereo", tmp_path / "device"
    speech.mkdir()
    for number in range(7):
        both = np.stack([np.zeros(RATE), tone(number)], axis=1)
        soundfile.write(speech / f"{number}.wav", both, RATE)
        (speech / f"{number}.txt").write_text(f"word{number}\n")
    for channel, said in ((None, f"corpus check {speech}`"), (0, f"check {speech} --channel 0`")):
        with pytest.raises(CorpusError, match=f"{said} says what is wrong"):
            own_speech.cut(speech, device, parts(5.0), anew=True, channel=channel)
    own_speech.cut(speech, device, parts(5.0), anew=True, channel=1)
    heard = [samples(cut) for cut in CutSet.from_jsonl(device / "train.jsonl")]
    assert len(heard) == 5
    for number, wave in enumerate(heard):
        np.testing.assert_allclose(wave, tone(number), atol=2**-15)


def test_too_little_speech_says_how_much_there_is(speech, tmp_path):
    with pytest.raises(CorpusError, match=r"train_s has 5\.0 s in 5 utterances, .* least 60 s"):
        own_speech.cut(speech, tmp_path / "device", parts(5.0, least=60.0), anew=True)
    with pytest.raises(CorpusError, match="test_s has no utterance"):
        own_speech.cut(speech, tmp_path / "device", parts(300.0), anew=True)
    assert not (tmp_path / "device").exists()
