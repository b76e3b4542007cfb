"""`fedspeech corpus check`: one line for every file, and a status that scripts can go by."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "speech"
    (place / "monday").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, rate in (("a.wav", 8_000), ("monday/b.flac", 16_000)):
        soundfile.write(place / name, draw.uniform(-0.2, 0.2, rate), rate)
        (place / name).with_suffix(".txt").write_text("hello")
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(out: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in out.splitlines() if line]


def test_all_is_usable(fedspeech, folder):
    before = contents(folder)
    status, out, err = fedspeech("corpus", "check", folder)
    assert (status, err) == (0, "")
    assert rows(out) == [
        ["file", "seconds", "usable", "why not, or what is done"],
        ["a.wav", "1.00", "yes", "resampled from 8000 to 16000 Hz"],
        ["monday/b.flac", "1.00", "yes"],
        ["usable: 2 of 2, 2.0 s"],
    ]
    assert contents(folder) == before


def test_faults_are_listed_and_change_the_status(fedspeech, folder):
    (folder / "a.txt").unlink()
    status, out, err = fedspeech("corpus", "check", folder)
    assert (status, err) == (1, "")
    assert rows(out)[1:] == [
        ["a.wav", "no", "no transcript; expected a.txt beside it"],
        ["monday/b.flac", "1.00", "yes"],
        ["usable: 1 of 2, 1.0 s"],
    ]


def test_duplicates_are_named_as_they_lie_in_the_folder(fedspeech, folder):
    (folder / "c.wav").write_bytes((folder / "a.wav").read_bytes())
    (folder / "c.txt").write_text("hello")
    status, out, _ = fedspeech("corpus", "check", folder)
    assert status == 1 and ["c.wav", "no", "the same audio as a.wav"] in rows(out)


def test_in_a_terminal_it_is_a_table_whatever_files_are_called(fedspeech, folder, monkeypatch):
    (folder / "a.txt").rename(folder / "[bold] [x]\x1b[2J.txt")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    status, out, _ = fedspeech("corpus", "check", folder)
    assert "\x1b[2J" not in out
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert status == 1 and re.search(
        r"│ \[bold\] \[x\]\\x1b\[2J\.txt +│ +│ no +│ a transcript", plain
    )


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_speech_is_one_message(fedspeech, tmp_path, name):
    (tmp_path / "empty").mkdir()
    status, out, err = fedspeech("corpus", "check", tmp_path / name)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"fedspeech: {tmp_path / name}: ")
