from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

HEADER = ",path,speakerId,transcription,action,object,location"
ROWS = {
    "train": [
        "0,wavs/speakers/2Bq/8d.wav,2Bq,Change language,change language,none,none",
        '1,wavs/speakers/2Bq/94.wav,2Bq,"Heat, please",increase,heat,washroom',
    ],
    "valid": ["0,wavs/speakers/xyz/8d.wav,xyz,Resume,activate,music,none"],
    "test": ["0,wavs/speakers/abc/11.wav,abc,Lights on,activate,lights,none"],
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for part, rows in ROWS.items():
        (tmp_path / f"data/{part}_data.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        for row in rows:
            audio = tmp_path / row.split(",")[1]
            audio.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(audio, np.full(4_000, 0.25), 16_000)
    return tmp_path


def load(path: Path) -> list:
    return list(corpus.load(CorpusSettings(recipe="fluent-speech-commands", path=str(path))))


def refuse(path: Path) -> str:
    with pytest.raises(CorpusError) as error:
        load(path)
    return str(error.value)


def test_every_utterance_has_its_speaker_and_meaning(tree):
    spoken = load(tree)
    assert [(c.id, cuts.speaker_of(c), cuts.text_of(c)) for c in spoken] == [
        ("2Bq-8d", "2Bq", "Change language"),
        ("2Bq-94", "2Bq", "Heat, please"),
        ("xyz-8d", "xyz", "Resume"),
        ("abc-11", "abc", "Lights on"),
    ]
    assert spoken[1].supervisions[0].custom == {
        "part": "train",
        "action": "increase",
        "object": "heat",
        "location": "washroom",
    }
    np.testing.assert_array_equal(cuts.samples(spoken[3]).numpy(), np.full(4_000, 0.25, np.float32))


def test_what_is_wrong_is_told_with_file_and_line(tree):
    (tree / "wavs/speakers/2Bq/94.wav").unlink()
    path = tree / "data/test_data.csv"
    path.write_text(path.read_text() + "1,wavs/speakers/abc/11.wav,abc,,activate,none,none\n2\n")
    lines = refuse(tree).splitlines()
    assert lines[0].startswith(f"{tree / 'data/train_data.csv'}:3: ")
    assert lines[0].endswith("94.wav: no such file")
    assert lines[1] == f"{path}:3: utterance abc-11: empty transcript"
    assert lines[2].startswith(f"{path}:4: ")


def test_a_missing_column_and_a_missing_list(tree):
    path = tree / "data/valid_data.csv"
    path.write_text(path.read_text().replace("speakerId", "speaker"))
    assert refuse(tree) == f"{path}:1: expected a column speakerId"
    path.write_text("path," * 40_000 + "\n")
    assert refuse(tree) == f"{path}:1: expected a column speakerId"
    path.write_text('"' + "x" * 200_000)
    assert refuse(tree).startswith(f"{path}: not a readable list: field larger than")
    path.unlink()
    assert refuse(tree).startswith(f"{path}: not a readable list")
    with pytest.raises(CorpusError, match=r"corpus\.path: expected the folder fluent"):
        corpus.load(CorpusSettings(recipe="fluent-speech-commands"))
