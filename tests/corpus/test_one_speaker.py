"""What a box is given: which form it has, and every utterance or fault of it."""

import gzip
import json
import shutil

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

from fedspeech.corpus import cuts, one_speaker
from fedspeech.corpus.cuts import speaker_of, text_of
from fedspeech.errors import CorpusError


def faults(path, **settings) -> dict[str, str]:
    """What is wrong with each file or line, by the end of its path."""
    found = one_speaker.entries(path, **settings)
    return {e.where.removeprefix(f"{path}/"): e.fault for e in found if e.cut is None}


def usable(path, **settings) -> list[MonoCut]:
    return [entry.cut for entry in one_speaker.entries(path, **settings) if entry.cut is not None]


def refuse(path) -> str:
    with pytest.raises(CorpusError) as error:
        list(one_speaker.entries(path))
    return str(error.value)


# Recordings, each with its transcript.


def test_recordings_with_transcripts_in_all_folders(tmp_path, sine):
    for name in ("b.FLAC", "a.wav", "monday/c.1.ogg"):
        sine(name, 440)
    (tmp_path / "a.txt").write_text("hello\nworld\n")
    (tmp_path / "b.TXT").write_bytes("﻿grüße".encode())
    (tmp_path / "monday" / "c.1.txt").write_text("one")
    for ignored in (".DS_Store", "._a.wav", "notes.md", ".git/x.wav"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"x")
    found = usable(tmp_path)
    assert [(cut.id, text_of(cut)) for cut in found] == [
        ("a", "hello world"),
        ("b", "grüße"),
        ("monday/c.1", "one"),
    ]
    assert {speaker_of(cut) for cut in found} == {one_speaker.OWNER}
    assert faults(tmp_path) == {}


def test_what_is_wrong_with_recordings_is_told_file_by_file(tmp_path, sine):
    for name in ("good.wav", "alone.wav", "twice.flac", "twice.wav", "latin.wav", "empty.wav"):
        sine(name, 440)
    sine("stereo.wav", 440, 600)
    for name in ("good", "twice", "noise", "lone", "stereo", "phone", "zero"):
        (tmp_path / f"{name}.txt").write_text("a")
    (tmp_path / "latin.txt").write_bytes("gr\xfc\xdfe".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "noise.wav").write_bytes(b"no audio" * 100)
    (tmp_path / "phone.m4a").write_bytes(b"no audio" * 100)
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    found = faults(tmp_path)
    assert found.pop("noise.wav").startswith("unreadable audio (")
    assert found == {
        "alone.wav": "no transcript; expected alone.txt beside it",
        "twice.wav": "twice.flac has the same name already",
        "latin.wav": "latin.txt is not UTF-8: byte 0xfc at 2; save it as UTF-8",
        "empty.wav": "utterance empty: empty transcript",
        "lone.txt": "a transcript without a recording (.wav, .flac, .ogg …) beside it",
        "stereo.wav": "2 channels, expected 1; name one to take, from 0 (--channel, or "
        "corpus.channel of an experiment)",
        "phone.m4a": ".m4a is not read; convert it to .wav or .flac",
        "zero.wav": "audio of length zero",
    }
    assert [cut.id for cut in usable(tmp_path)] == ["good", "twice"]
    assert {cut.id for cut in usable(tmp_path, channel=0)} == {"good", "twice", "stereo"}


def test_a_name_that_is_not_utf_8(tmp_path, sine):
    sine("a.wav", 440).rename(tmp_path / "\udce4.wav")
    assert faults(tmp_path) == {"�.wav": "its name is not UTF-8; rename it"}


def test_a_folder_that_may_not_be_read_is_told(tmp_path, sine, child):
    """Root may read everything, so a process without that right looks."""
    sine("a.wav", 440)
    sine("locked/b.wav", 440)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "locked").chmod(0)
    code = """
import ctypes, os, sys
from pathlib import Path
from fedspeech.corpus import one_speaker
if os.geteuid() == 0:
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, sets) == 0
for entry in one_speaker.entries(Path(sys.argv[1])):
    print(Path(entry.where).name, entry.fault)
"""
    try:
        done = child(code, tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert done.stdout == "locked unreadable folder (Permission denied)\na.wav \n", done.stderr


# Lhotse's cut sets.


@pytest.fixture
def talk(tmp_path) -> Recording:
    """Ten seconds in which sample i is i / 160,000, in a file beside the manifest."""
    (tmp_path / "audio").mkdir()
    ramp = np.arange(160_000, dtype=np.float32) / 160_000
    soundfile.write(tmp_path / "audio" / "talk.wav", ramp, 16_000, subtype="FLOAT")
    return Recording(
        id="talk",
        sources=[AudioSource(type="file", channels=[0], source="audio/talk.wav")],
        sampling_rate=16_000,
        num_samples=160_000,
        duration=10.0,
        channel_ids=[0],
    )


def segment(id: str, start: float, seconds: float, text: str | None = "a b", **more):
    return SupervisionSegment(id, "talk", start, seconds, text=text, **more)


def cut(talk: Recording, id: str = "c", start: float = 2.0, seconds: float = 4.0, *supervisions):
    return MonoCut(id, start, seconds, 0, list(supervisions), recording=talk)


def test_every_supervision_of_a_cut_is_an_utterance(tmp_path, talk):
    one = cut(talk, "c", 2.0, 4.0, segment("s1", 0.0, 1.5), segment("s2", 2.5, 1.5, "c"))
    for name in ("cuts.jsonl.gz", "cuts.jsonl"):
        CutSet.from_cuts([one]).to_file(tmp_path / name)
        for source in (tmp_path / name, tmp_path):
            first, second = usable(source)
            assert (first.id, text_of(first), second.id, text_of(second)) == (
                "s1",
                "a b",
                "s2",
                "c",
            )
            ramp = cuts.samples(second).numpy()
            np.testing.assert_allclose(ramp, np.arange(72_000, 96_000) / 160_000, atol=1e-6)
        (tmp_path / name).unlink()


def test_a_cut_set_that_lhotse_wrote_of_real_recordings(tmp_path, sine):
    """Absolute paths, of a rate that is not ours."""
    path = sine("tone.wav", 440, rate=8_000)
    whole = Recording.from_file(path).to_cut()
    whole.supervisions.append(SupervisionSegment("s", whole.recording_id, 0, 1.0, text="a"))
    (tmp_path / "lhotse").mkdir()
    CutSet.from_cuts([whole]).to_file(tmp_path / "lhotse" / "cuts.jsonl.gz")
    (found,) = usable(tmp_path / "lhotse")
    assert len(cuts.samples(found)) == 16_000


def test_what_is_wrong_with_cuts_is_told_line_by_line(tmp_path, talk):
    good = cut(talk, "c", 0.0, 4.0, segment("s1", 0.0, 1.0, speaker="anna"))
    lines = [
        good.to_dict(),
        good.append(good).to_dict(),
        cut(talk, "silent").to_dict(),
        cut(talk, "text", 0.0, 1.0, segment("s2", 0.0, 1.0, None)).to_dict(),
        cut(talk, "again", 0.0, 1.0, segment("s1", 0.0, 1.0)).to_dict(),
        cut(talk, "ben", 0.0, 1.0, segment("s3", 0.0, 1.0, speaker="ben")).to_dict(),
        {key: value for key, value in good.to_dict().items() if key != "recording"},
        {**good.to_dict(), "recording": {**talk.to_dict(), "sources": []}},
        {**good.to_dict(), "recording": talk.perturb_speed(1.1).to_dict()},
        {**good.to_dict(), "start": "soon"},
        {"id": "x", "type": "MonoCut"},
    ]
    path = tmp_path / "cuts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, lines)) + "\n{\n")
    found = {int(where.rpartition(":")[2]): fault for where, fault in faults(path).items()}
    assert [each.id for each in usable(path)] == ["s1"]
    assert found.pop(2) == "expected a MonoCut, found 'MixedCut'"
    assert found.pop(3) == "cut silent: no supervision, so nobody knows what is said"
    assert found.pop(4) == "utterance s2: empty transcript"
    assert found.pop(5) == "utterance id s1 was on line 1 already"
    assert found.pop(6) == "speaker ben; what comes before is anna's, and a box holds one's"
    assert found.pop(7) == "cut c: no recording; features alone are not enough"
    assert found.pop(8) == "recording talk: expected one file, found []"
    assert found.pop(9) == "recording talk_sp1.1: expected speech as it was recorded"
    assert found.pop(12).startswith("not JSON: ")
    assert {found.pop(n).partition(":")[0] for n in (10, 11)} == {"not a cut of Lhotse's"}
    assert found == {}


# Our manifest, and which form it is.


def entry(number: int, **changes) -> dict:
    whole = {"id": f"u{number}", "speaker": "anna", "audio": "a.wav", "text": "hello"}
    return {**whole, **changes}


def test_our_manifest_is_read_by_any_name_and_one_speaker_alone(tmp_path, sine, manifest):
    sine("a.wav", 440)
    path = manifest(entry(1), entry(2, speaker="ben"), entry(1), "{", entry(3))
    for source in (path, tmp_path):
        assert [cut.id for cut in usable(source)] == ["u1", "u3"]
        found = [e.fault for e in one_speaker.entries(source) if e.cut is None]
        assert found[:2] == [
            "speaker ben; what comes before is anna's, and a box holds one's",
            "utterance id u1 was on line 1 already",
        ]
        assert found[2].startswith("not JSON: ")
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert [cut.id for cut in usable(tmp_path)] == ["u1", "u3"]


def test_a_manifest_counts_before_recordings_and_lhotses_other_manifests(tmp_path, sine, talk):
    sine("a.wav", 440)
    (tmp_path / "recordings.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(talk.to_dict()).encode())
    )
    assert faults(tmp_path).keys() == {"a.wav", "audio/talk.wav"}
    one = cut(talk, "c", 0.0, 4.0, segment("s1", 0.0, 1.0))
    CutSet.from_cuts([one]).to_file(tmp_path / "cuts.jsonl.gz")
    assert [each.id for each in usable(tmp_path)] == ["s1"]
    shutil.copy(tmp_path / "cuts.jsonl.gz", tmp_path / "copy.jsonl.gz")
    assert refuse(tmp_path).endswith(
        ": 2 manifests (copy.jsonl.gz, cuts.jsonl.gz); name the one to read"
    )


def test_what_is_no_speech_at_all(tmp_path, sine):
    assert refuse(tmp_path / "nowhere") == f"{tmp_path}/nowhere: No such file or directory"
    (tmp_path / "notes.txt").write_text("a")
    assert refuse(tmp_path).startswith(f"{tmp_path}: no speech here; expected recordings with")
    broken = tmp_path / "cuts.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"id": 1}\n' * 1000)[:-9])
    assert refuse(broken).startswith(f"{broken}: not a readable manifest: ")
    assert refuse(tmp_path).startswith(f"{broken}: not a readable manifest: ")
    broken.write_bytes(b"plain")
    assert "not a readable manifest: Not a gzipped file" in refuse(broken)
    broken.write_bytes(gzip.compress(b"\n"))
    assert refuse(broken) == f"{broken}: no utterance found"
    broken.write_bytes(gzip.compress(b"\n[1]\n"))
    assert refuse(broken) == f"{broken}:2: expected a JSON object, found list"
    audio = sine("tone.wav", 440)
    assert refuse(audio).startswith(f"{audio}: not a readable manifest: ")
