import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import an4, cuts
from fedspeech.errors import CorpusError

LINES = {
    "train": [
        "<s> YES </s> (an2-abcd-b)",
        "<s> A <sil> B </s> (cen1-abcd-b)",
        "",
        "GO (an1-efgh2-b)",
    ],
    "test": ["RUBOUT NINE (an3-ijkl-b)"],
}


def plant(root: Path) -> Path:
    """A tree of three speakers in the form of the source."""
    (root / "etc").mkdir(parents=True)
    for part, lines in LINES.items():
        (root / f"etc/an4_{part}.transcription").write_text("\n".join(lines) + "\n")
        for line in filter(None, lines):
            id = line[line.index("(") + 1 : -1]
            audio = root / "wav" / an4.FOLDERS[part] / id.split("-")[1] / f"{id}.wav"
            audio.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(audio, np.full(4_000, 0.25), 16_000)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant(tmp_path / "an4")


def prepare(path: Path) -> list:
    return list(corpus.load(CorpusSettings(recipe="an4", path=str(path))))


def test_utterances_by_speaker_and_id_without_marks(tree):
    found, problems = an4.read(tree)
    assert problems == []
    assert [(c.id, cuts.speaker_of(c), cuts.text_of(c)) for c in found] == [
        ("an2-abcd-b", "abcd", "YES"),
        ("cen1-abcd-b", "abcd", "A B"),
        ("an1-efgh2-b", "efgh2", "GO"),
        ("an3-ijkl-b", "ijkl", "RUBOUT NINE"),
    ]
    splits = [cut.supervisions[0].custom for cut in found]
    assert splits == [{"source_split": part} for part in ("train", "train", "train", "test")]


def test_what_is_wrong_is_told_with_file_and_line(tree):
    (tree / "wav/an4_clstk/abcd/cen1-abcd-b.wav").unlink()
    path = tree / "etc/an4_test.transcription"
    path.write_text(path.read_text() + "NO ID HERE\n<s> </s> (an3-ijkl-b)\n")
    with pytest.raises(CorpusError) as error:
        prepare(tree)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{tree / 'etc/an4_train.transcription'}:2: ")
    assert lines[0].endswith("cen1-abcd-b.wav: no such file")
    assert lines[1] == f"{path}:2: expected words and (id-speaker-b), found 'NO ID HERE'"
    assert lines[2] == f"{path}:3: utterance an3-ijkl-b: empty transcript"
    path.unlink()
    with pytest.raises(CorpusError, match=r"an4_test\.transcription: not a readable list"):
        prepare(tree)
    with pytest.raises(CorpusError, match=r"corpus\.path: expected a clone of .*cmusphinx/an4"):
        corpus.load(CorpusSettings(recipe="an4"))


def test_the_fingerprint_of_a_whole_tree(tree, monkeypatch):
    """Of this small tree; the digest is that of what stands below, made by hand."""
    lines = "an2-abcd-b 4000 YES\ncen1-abcd-b 4000 A B\n"
    assert an4.fingerprint(an4.read(tree)[0][:2]) == sha256(lines)
    monkeypatch.setattr(an4, "COUNTS", {"train": (2, 3), "test": (1, 1)})
    monkeypatch.setattr(an4, "KNOWN", f"abcd:{sha256(lines)[:8]}")
    assert len(prepare(tree)) == 4
    listed = tree / "etc/an4_train.transcription"
    listed.write_text(listed.read_text().replace("YES", "NO"))
    with pytest.raises(CorpusError, match=r"^speaker abcd: ids, lengths or transcripts differ"):
        prepare(tree)
    listed.write_text(listed.read_text().replace("NO", "YES").replace("GO (an1-efgh2-b)\n", ""))
    with pytest.raises(
        CorpusError,
        match=r"^train: 1 speakers with 2 utterances, the source has 2 speakers with 3 u",
    ):
        prepare(tree)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_incomplete_tree_is_refused_with_what_is_missing(tree):
    with pytest.raises(CorpusError) as error:
        prepare(tree)
    lines = str(error.value).splitlines()
    assert lines[:3] == [
        "train: 2 speakers with 3 utterances, the source has 74 speakers with 948 utterances",
        "test: 1 speakers with 1 utterances, the source has 10 speakers with 130 utterances",
        "speaker fash is missing",
    ]
    assert lines[-1] == "… and 38 more"


@pytest.mark.speech
def test_real_recordings_under_their_source_names(speech, tmp_path):
    """The recipe reads from the tree what the manifest says of the same recordings."""
    manifest = list(corpus.load(CorpusSettings(path=str(speech / "an4"))))
    chosen = [cut for cut in manifest if cuts.speaker_of(cut) in {"fash", "mdcs2", "fvap"}]
    (tmp_path / "etc").mkdir()
    lists = {part: tmp_path / f"etc/an4_{part}.transcription" for part in an4.FOLDERS}
    for path in lists.values():
        path.write_text("")
    for cut in reversed(chosen):
        custom = cut.supervisions[0].custom
        audio = tmp_path / custom["source_file"]
        audio.parent.mkdir(parents=True, exist_ok=True)
        wave, rate = soundfile.read(cut.recording.sources[0].source, dtype="int16")
        soundfile.write(audio, wave, rate)
        with lists[custom["source_split"]].open("a") as file:
            file.write(f"<s> {cuts.text_of(cut)} </s> ({cut.id})\n")
    found, problems = an4.read(tmp_path)
    assert problems == [] and len(found) == len(chosen) > 30
    for ours, theirs in zip(found, chosen, strict=True):
        assert ours.id == theirs.id
        assert cuts.speaker_of(ours) == cuts.speaker_of(theirs)
        assert cuts.text_of(ours) == cuts.text_of(theirs)
        source_split = theirs.supervisions[0].custom["source_split"]
        assert ours.supervisions[0].custom["source_split"] == source_split
        np.testing.assert_array_equal(cuts.samples(ours), cuts.samples(theirs))
    wrong = an4.differences(found)
    assert not any("differ" in line for line in wrong)
    assert len([line for line in wrong if line.endswith("is missing")]) == 53
    with pytest.raises(CorpusError, match="the source has 74 speakers with 948 utterances"):
        prepare(tmp_path)
    shutil.rmtree(tmp_path / "wav/an4_clstk/fash")
    with pytest.raises(CorpusError, match=r"an251-fash-b\.wav: no such file"):
        prepare(tmp_path)


@pytest.mark.speech
def test_the_fingerprint_agrees_with_all_speakers_that_are_known(speech):
    manifest = list(corpus.load(CorpusSettings(path=str(speech / "an4"))))
    wrong = an4.differences(manifest)
    assert wrong == [
        "train: 49 speakers with 627 utterances, the source has 74 speakers with 948 utterances",
        "test: 7 speakers with 91 utterances, the source has 10 speakers with 130 utterances",
    ]
    assert "speaker fash: ids, lengths or transcripts differ from the source's" in an4.differences(
        manifest[1:]
    )
