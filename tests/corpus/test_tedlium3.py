import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings, PartitionSettings, TrainPart
from fedspeech.corpus import cuts, tedlium3
from fedspeech.corpus.partition import partition
from fedspeech.errors import CorpusError

RAMP = np.arange(-16_000, 16_000, dtype=np.int16)
"""Two seconds in which every sample tells its place."""


def talk(root: Path, name: str, *lines: str, values: np.ndarray = RAMP) -> Path:
    for kind in ("stm", "sph"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    soundfile.write(root / "sph" / f"{name}.sph", values, 16_000, format="NIST", subtype="PCM_16")
    stm = root / "stm" / f"{name}.stm"
    stm.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return stm


def load(path: Path) -> list:
    return list(corpus.load(CorpusSettings(recipe="tedlium3", path=str(path))))


def refuse(path: Path) -> str:
    with pytest.raises(CorpusError) as error:
        load(path)
    return str(error.value)


def test_words_and_samples_of_a_talk(tmp_path):
    talk(
        tmp_path / "data",
        "Anna_2010",
        ";; a comment",
        "Anna_2010 1 Anna_2010 0.10 0.60 <o,f0,female> it 's a(2) {NOISE} <unk> test i 've don 't",
        "Anna_2010 1 inter_segment_gap 0.60 0.70 <o,,unknown>",
        "Anna_2010 1 Anna_2010 0.70 0.80 <o,f0,female> ignore_time_segment_in_scoring",
        "Anna_2010 1 Anna_2010 0.80 0.90 <o,f0,female> <unk> {BREATH}",
        "",
        "Anna_2010 1 Anna_2010 0.9001 1.5 <o,f0,female> the boys ' club",
        "Anna_2010 1 Anna_2010 1.5 2.4 <F0_F> last words (Anna_2010-1.5-2.4-F0_F-S1)",
    )
    spoken = load(tmp_path)
    assert [cuts.text_of(cut) for cut in spoken] == [
        "it's a test i've don't",
        "the boys ' club",
        "last words",
    ]
    assert [cut.id for cut in spoken] == ["Anna_2010-0002", "Anna_2010-0007", "Anna_2010-0008"]
    assert {cuts.speaker_of(cut) for cut in spoken} == {"Anna_2010"}
    for cut, (first, last) in zip(
        spoken, [(1_600, 9_600), (14_402, 24_000), (24_000, 32_000)], strict=True
    ):
        expected = RAMP[first:last] / np.float32(32_768)
        np.testing.assert_array_equal(cuts.samples(cut).numpy(), expected)


def test_the_train_part_of_the_legacy_tree_is_read_where_there_is_no_data_folder(tmp_path):
    line = "{0} 1 {0} 0 1 <o,f0,male> {1}"
    for part in ("train", "dev", "test"):
        talk(tmp_path / "legacy" / part, f"Talk_{part}", line.format(f"Talk_{part}", "old"))
    assert [cut.id for cut in load(tmp_path)] == ["Talk_train-0001"]
    talk(tmp_path / "data", "Talk_data", line.format("Talk_data", "new"))
    assert [cut.id for cut in load(tmp_path)] == ["Talk_data-0001"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A 1 A 0.5", "expected talk, channel, speaker, start, end, found 'A 1 A 0.5'"),
        ("A 1 A zero 1.0 <o,f0,male> word", "expected talk, channel, speaker, start, end"),
        ("B 1 B 0.0 1.0 <o,f0,male> word", "expected talk A, found B"),
        ("A 1 A 0.5 3.5 <o,f0,male> word", "[0.5 s, 3.5 s] lies outside its recording of 2 s"),
        ("A 1 A 2.5 2.9 <o,f0,male> word", "[2.5 s, 2.9 s] lies outside its recording of 2 s"),
        ("A 1 A 1.0 0.9 <o,f0,male> word", "audio of length zero"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    stm = talk(tmp_path / "data", "A", "A 1 A 0.0 1.0 <o,f0,male> fine", line)
    found = refuse(tmp_path)
    assert found.startswith(f"{stm}:2: ") and message in found


def test_a_talk_without_audio_or_in_another_encoding(tmp_path):
    talk(tmp_path / "data", "A", "A 1 A 0.0 1.0 <o,f0,male> fine")
    stm = talk(tmp_path / "data", "B", "B 1 B 0.0 1.0 <o,f0,male> fine")
    stm.write_bytes("B 1 B 0 1 <o> café".encode("latin-1"))
    talk(tmp_path / "data", "C", "C 1 C 0.0 1.0 <o,f0,male> fine")
    (tmp_path / "data/sph/C.sph").unlink()
    lines = refuse(tmp_path).splitlines()
    assert lines[0].startswith(f"{stm}: not readable: ")
    assert lines[1:] == [f"{tmp_path / 'data/sph/C.sph'}: no such file"]


def test_a_folder_that_is_not_the_corpus(tmp_path):
    assert refuse(tmp_path) == f"{tmp_path}: expected a folder data/stm or legacy/train/stm"
    with pytest.raises(CorpusError, match=r"corpus\.path: expected the folder TEDLIUM_release-3"):
        tedlium3.prepare(CorpusSettings())


@pytest.mark.speech
def test_the_papers_lists_cut_a_miniature_of_the_corpus(tmp_path, speech, caplog):
    lists = {
        part: speech / "tedlium3-personalization-split" / f"{part}.txt"
        for part in ("generic", "perso1", "perso2")
    }
    ids = {part: path.read_text().split() for part, path in lists.items()}
    assert {part: len(names) for part, names in ids.items()} == {
        "generic": 880,
        "perso1": 634,
        "perso2": 761,
    }
    for names in ids.values():
        for name in names[:3]:
            line = f"{name} 1 {name} {{}} {{}} <o,f0,male> some words"
            talk(tmp_path / "data", name, *(line.format(i / 2, i / 2 + 0.5) for i in range(4)))
    speech_of_all = corpus.load(CorpusSettings(recipe="tedlium3", path=str(tmp_path)))
    for trial in ("perso1", "perso2"):
        settings = PartitionSettings(
            generic=str(lists["generic"]),
            clients=str(lists[trial]),
            train=TrainPart(seconds=1.0),
            least_seconds=0.5,
        )
        with caplog.at_level(logging.WARNING):
            parts = partition(speech_of_all, settings)
        assert [client.speaker for client in parts.clients] == sorted(ids[trial][:3])
        of_g = {cuts.speaker_of(cut) for cut in [*parts.generic, *parts.development]}
        assert of_g == set(ids["generic"][:3])
        assert f"{len(ids[trial]) - 3} of the {len(ids[trial])} speakers" in caplog.messages[-1]
