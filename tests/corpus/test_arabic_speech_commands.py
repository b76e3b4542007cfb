import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import arabic_speech_commands as arabic
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """All names of the source, every file the same second of a quiet tone."""
    second = tmp_path / "second.wav"
    soundfile.write(second, 0.1 * np.sin(np.arange(16_000)), 16_000)
    for keyword in (*arabic.KEYWORDS, "background_noise"):
        folder = tmp_path / "clone/dataset" / keyword
        folder.mkdir(parents=True)
        for speaker in range(1, 31):
            for round in range(1, 11):
                os.link(second, folder / f"{speaker:08d}_NO_{round:02d}.wav")
    return tmp_path / "clone"


def prepare(path: Path) -> list:
    return list(corpus.load(CorpusSettings(recipe="arabic-speech-commands", path=str(path))))


def test_a_whole_tree_by_speaker_round_and_keyword(tree):
    spoken = prepare(tree)
    assert len(spoken) == 12_000 and len({cut.id for cut in spoken}) == 12_000
    assert [cut.id for cut in spoken[:401:40]][:2] == ["asc01-backward-01", "asc01-backward-02"]
    assert spoken[400].id == "asc02-backward-01" and spoken[-1].id == "asc30-zoom_out-10"
    assert len({cuts.speaker_of(cut) for cut in spoken}) == 30
    assert len({cuts.text_of(cut) for cut in spoken}) == 40
    last = spoken[-1].supervisions[0]
    assert last.custom == {"intent": "zoom_out", "round": 10} and last.text == "tasghir"


def test_a_tree_that_is_not_that_of_the_source(tree):
    folder = tree / "dataset"
    (folder / "zoom in/00000030_NO_10.wav").unlink()
    for round in range(1, 5):
        (folder / f"up/00000007_NO_{round:02d}.wav").unlink()
    (folder / "up/00000031_NO_01.wav").touch()
    with pytest.raises(CorpusError) as error:
        prepare(tree)
    assert str(error.value) == (
        f"{folder}: 5 of 12000 recordings are missing: up/00000007_NO_01.wav, "
        "up/00000007_NO_02.wav, up/00000007_NO_03.wav, …; "
        "1 recordings are not of the source: up/00000031_NO_01.wav"
    )


def test_a_recording_of_another_length_or_rate(tree):
    short, slow = (tree / "dataset/yes" / f"00000002_NO_0{round}.wav" for round in (1, 2))
    for path, count, rate in [(short, 15_999, 16_000), (slow, 8_000, 8_000)]:
        path.unlink()
        soundfile.write(path, np.full(count, 0.1), rate)
    with pytest.raises(CorpusError) as error:
        prepare(tree)
    assert str(error.value).splitlines() == [
        f"{short}: 15999 samples at 16000 Hz, the source has 16000 at 16000 Hz",
        f"{slow}: 8000 samples at 8000 Hz, the source has 16000 at 16000 Hz",
    ]


def test_no_tree(tmp_path):
    with pytest.raises(
        CorpusError, match="12000 of 12000 recordings are missing: backward/00000001"
    ):
        prepare(tmp_path)
    with pytest.raises(CorpusError, match=r"corpus\.path: expected a clone of"):
        corpus.load(CorpusSettings(recipe="arabic-speech-commands"))


@pytest.mark.speech
def test_real_recordings_under_their_source_names(speech, tmp_path):
    """The recipe reads from the tree what the manifest says of the same recordings."""
    manifest = list(corpus.load(CorpusSettings(path=str(speech / "arabic-speech-commands"))))
    chosen = [cut for cut in manifest if cuts.speaker_of(cut) in {"asc02", "asc29"}]
    for cut in reversed(chosen):
        audio = tmp_path / cut.supervisions[0].custom["source_file"]
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, cuts.samples(cut).numpy(), 16_000)
    with pytest.raises(CorpusError, match="11200 of 12000 recordings are missing"):
        prepare(tmp_path)
    found, problems = arabic.read(tmp_path, arabic.listing(tmp_path))
    assert problems == [] and len(found) == len(chosen) == 800
    for ours, theirs in zip(found, chosen, strict=True):
        assert ours.id == theirs.id
        assert cuts.speaker_of(ours) == cuts.speaker_of(theirs)
        assert cuts.text_of(ours) == cuts.text_of(theirs)
        for field in ("intent", "round"):
            assert ours.supervisions[0].custom[field] == theirs.supervisions[0].custom[field]
    for ours, theirs in zip(found[::97], chosen[::97], strict=True):
        assert np.abs(cuts.samples(ours) - cuts.samples(theirs)).max() <= 2**-15
