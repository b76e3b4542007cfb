import re

import pytest

from fedspeech import progress


def run(least: int, steps: int, name: str = "train.install mean") -> None:
    with progress.stage(least) as shown:
        for number in range(steps):
            shown.start(name, number + 1)
            shown.advance(f"loss {number}")


def test_a_short_stage_is_one_line(capsys):
    run(3, 3)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"train\.install mean: 3 in \d+\.\d s loss 2\n", said.err)


def test_a_long_stage_says_where_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    run(4, 5)  # more than were expected
    lines = capsys.readouterr().err.splitlines()
    assert lines[:5] == [f"train.install mean: {n}/{max(4, n)} loss {n - 1}" for n in range(1, 6)]
    assert lines[5].startswith("train.install mean: 5 in ")


def test_where_nothing_is_to_do_nothing_is_said(capsys):
    run(4, 0)
    assert capsys.readouterr().err == ""


def test_a_stage_that_breaks_off_says_how_far_it_came(capsys):
    with pytest.raises(KeyboardInterrupt), progress.stage(9) as shown:
        shown.start("train G", 9)
        shown.advance("")
        raise KeyboardInterrupt
    assert re.fullmatch(r"train G: 1 in \d+\.\d s\n", capsys.readouterr().err)


def test_a_terminal_gets_a_live_line(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run(4, 3)
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"train\.install mean .*3/4 .*loss 2", said)
    assert said.splitlines()[-1].startswith("train.install mean: 3 in ")
