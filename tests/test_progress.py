import re

import pytest

from fedspeech import progress


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def run(clock, total: int, steps: int, each: float = 0.5, name: str = "train.install mean") -> None:
    with progress.stage(total) as shown:
        for number in range(steps):
            shown.start(name)
            clock.now += each
            shown.advance(f"loss {number}")


def test_a_short_stage_is_one_line(capsys, clock):
    run(clock, 3, 3)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "train.install mean: 3 in 1.5 s, 2/s, loss 2\n"


def test_a_long_stage_says_where_it_is(capsys, clock):
    """A line in fifteen seconds."""
    run(clock, 45, 45, each=4.0, name="train.personalize")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train.personalize: 4/45, 4 s each, 2 min 44 s left, loss 3"
    assert lines[1] == "train.personalize: 8/45, 4 s each, 2 min 28 s left, loss 7"
    assert lines[-2] == "train.personalize: 44/45, 4 s each, 4 s left, loss 43"
    assert lines[-1] == "train.personalize: 45 in 180.0 s, 4 s each, loss 44"
    assert len(lines) == 45 // 4 + 1


def test_where_nobody_knows_how_many_there_are_no_time_is_left(clock):
    with progress.stage(0) as shown:
        for number in range(3):
            shown.start("train")
            clock.now += 4
            shown.advance(f"loss {number}")
        assert shown.told() == "3, 4 s each, loss 2"


def test_what_an_earlier_run_had_done_says_nothing_about_the_pace(capsys, clock):
    with progress.stage(10) as shown:
        for _ in range(7):
            shown.start("train.personalize")
            shown.skip()
        assert shown.told() == "7/10"
        clock.now += 20
        shown.advance("loss 1.5")
        assert shown.told() == "8/10, 20 s each, 40 s left, loss 1.5"
        clock.now += 25  # the time that passes is not left any more
        assert shown.told() == "8/10, 20 s each, 15 s left, loss 1.5"
        clock.now += 100
        assert shown.told() == "8/10, 20 s each, 0 s left, loss 1.5"


def test_hours(clock):
    with progress.stage(1000) as shown:
        shown.start("train.personalize")
        clock.now += 30
        shown.advance("")
        assert shown.told() == "1/1000, 30 s each, 8 h 19 min left"


def test_where_nothing_is_to_do_nothing_is_said(capsys, clock):
    run(clock, 4, 0)
    assert capsys.readouterr().err == ""


def test_a_stage_that_breaks_off_says_how_far_it_came(capsys, clock):
    with pytest.raises(KeyboardInterrupt), progress.stage(9) as shown:
        shown.start("train G")
        clock.now += 0.25
        shown.advance("")
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "train G: 1 in 0.2 s, 4/s\n"


def test_a_terminal_gets_a_live_line(capsys, clock, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run(clock, 4, 3)
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"train\.install mean .*3/4, 2/s, 0 s left, loss 2", said)
    assert said.splitlines()[-1] == "train.install mean: 3 in 1.5 s, 2/s, loss 2"
