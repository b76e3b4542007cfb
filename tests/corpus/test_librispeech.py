import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

TEXTS = {
    ("train-clean-5", "19", "198"): ["NORTHANGER ABBEY", "THIS LITTLE WORK"],
    ("train-clean-5", "1088", "129236"): ["AS THE HOUR"],
    ("dev-clean-2", "84", "121123"): ["GO DO YOU HEAR"],
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for (part, speaker, chapter), texts in TEXTS.items():
        folder = tmp_path / "LibriSpeech" / part / speaker / chapter
        folder.mkdir(parents=True)
        lines = []
        for number, text in enumerate(texts):
            id = f"{speaker}-{chapter}-{number:04d}"
            soundfile.write(folder / f"{id}.flac", random.uniform(-0.5, 0.5, 8_000), 16_000)
            lines.append(f"{id} {text}\n")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return tmp_path / "LibriSpeech"


def load(path: Path) -> list:
    return list(corpus.load(CorpusSettings(recipe="librispeech", path=str(path))))


def test_all_parts_by_id(tree):
    spoken = load(tree)
    assert [(c.id, cuts.speaker_of(c), cuts.text_of(c)) for c in spoken] == [
        ("1088-129236-0000", "1088", "AS THE HOUR"),
        ("19-198-0000", "19", "NORTHANGER ABBEY"),
        ("19-198-0001", "19", "THIS LITTLE WORK"),
        ("84-121123-0000", "84", "GO DO YOU HEAR"),
    ]
    assert spoken[3].supervisions[0].custom == {"part": "dev-clean-2"}
    expected, _ = soundfile.read(tree / "train-clean-5/19/198/19-198-0001.flac", dtype="float32")
    np.testing.assert_array_equal(cuts.samples(spoken[2]).numpy(), expected)


def test_one_part(tree):
    assert [cut.id for cut in load(tree / "dev-clean-2")] == ["84-121123-0000"]


def test_audio_that_the_transcripts_name_and_the_tree_lacks(tree):
    folder = tree / "train-clean-5/19/198"
    (folder / "19-198-0001.flac").unlink()
    with pytest.raises(CorpusError) as error:
        load(tree)
    assert str(error.value) == f"{folder / '19-198.trans.txt'}: no audio for 19-198-0001"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("19-198-0002 CAFÉ", ": not a readable list: 'utf-8' codec"),
        ("19-198-0002", ":3: expected an"),
    ],
)
def test_a_transcript_that_cannot_be_used(tree, line, told):
    path = tree / "train-clean-5/19/198/19-198.trans.txt"
    path.write_bytes(path.read_bytes() + f"{line}\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=re.escape(f"{path}{told}")):
        load(tree)


@pytest.mark.parametrize("content", [b"", b"no audio at all"])
def test_unreadable_audio(tree, content):
    path = tree / "dev-clean-2/84/121123/84-121123-0000.flac"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"84-121123-0000\.flac"):
        load(tree)


def test_a_folder_that_is_not_the_corpus(tmp_path):
    with pytest.raises(CorpusError, match="Could not find any of librispeech"):
        load(tmp_path)
    with pytest.raises(CorpusError, match=r"nowhere: AssertionError: No such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"corpus\.path: expected the folder LibriSpeech"):
        corpus.load(CorpusSettings(recipe="librispeech"))
