from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

COLUMNS = "client_id path sentence up_votes down_votes age gender accents variant locale segment"


def write(language: Path, part: str, *rows: tuple[str, str, str]) -> None:
    (language / "clips").mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(COLUMNS.split())]
    for speaker, clip, sentence in rows:
        time = np.arange(16_000) / 32_000
        soundfile.write(language / "clips" / clip, 0.5 * np.sin(2 * np.pi * 600 * time), 32_000)
        lines.append("\t".join([speaker, clip, sentence, "2", "0", "teens", "", "", "", "pl", ""]))
    (language / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(path: Path) -> list:
    return list(corpus.load(CorpusSettings(recipe="commonvoice", path=str(path))))


def test_one_language_by_id(tmp_path):
    language = tmp_path / "pl"
    write(language, "test", ("b" * 64, "common_voice_pl_2.mp3", "Zażółć „gęślą”."))
    write(
        language,
        "train",
        ("a" * 64, "common_voice_pl_1.mp3", 'Nie "wiem.'),
        ("a" * 64, "common_voice_pl_3.mp3", "Tak."),
    )
    spoken = load(language)
    assert [(c.id[-4:], cuts.speaker_of(c)[0], cuts.text_of(c)) for c in spoken] == [
        ("pl_1", "a", 'Nie "wiem.'),
        ("pl_2", "b", "Zażółć „gęślą”."),
        ("pl_3", "a", "Tak."),
    ]
    assert spoken[1].supervisions[0].custom["part"] == "test"
    assert spoken[1].supervisions[0].custom["age"] == "teens"
    wave = cuts.samples(spoken[0]).numpy()
    assert len(wave) == 8_000
    assert np.argmax(np.abs(np.fft.rfft(wave))) * 2 == 600
    (language / "clips/common_voice_pl_3.mp3").unlink()
    (language / "test.tsv").unlink()
    with pytest.raises(CorpusError, match=r"train\.tsv: no audio for common_voice_pl_3"):
        load(tmp_path)


def test_a_list_of_an_old_release(tmp_path):
    write(tmp_path / "pl", "test", ("b", "common_voice_pl_2.mp3", "Tak."))
    path = tmp_path / "pl/test.tsv"
    path.write_text(path.read_text().replace("\tvariant", "\tsomething"))
    with pytest.raises(CorpusError, match=r"pl/test\.tsv:1: expected a column variant"):
        load(tmp_path / "pl")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("b\n", r":3: expected a path and a sentence"),
        ("b\tclip.mp3\n", r":3: expected a path and a sentence"),
        ("b\t" + "x" * 200_000, ": not a readable list: field larger than field limit"),
        ("b\t\xff", ": not a readable list: 'utf-8' codec can't decode"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path, content, told):
    write(tmp_path / "pl", "test", ("b", "common_voice_pl_2.mp3", "Tak."))
    with (tmp_path / "pl/test.tsv").open("ab") as file:
        file.write(content.encode("latin-1"))
    with pytest.raises(CorpusError, match=rf"pl/test\.tsv{told}"):
        load(tmp_path / "pl")


def test_a_folder_that_is_not_one_language(tmp_path):
    for name in ("pl", "de"):
        (tmp_path / name / "clips").mkdir(parents=True)
    with pytest.raises(CorpusError, match="expected the folder of one language of de, pl"):
        load(tmp_path)
    with pytest.raises(CorpusError, match=r"pl: expected train\.tsv, dev\.tsv or test\.tsv"):
        load(tmp_path / "pl")
    with pytest.raises(CorpusError, match="nowhere: expected the folder of one language, with its"):
        load(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"corpus\.path: expected the folder of one language"):
        corpus.load(CorpusSettings(recipe="commonvoice"))
