"""Ctrl-C ends a command also where what is at work makes something else of it."""

import signal

import pytest

from fedspeech import interrupts
from fedspeech.progress import stage


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """As in a terminal, whatever the tests were started from; put back afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(interrupts, "_asked", type(interrupts._asked)())
    interrupts.watch()
    yield
    signal.signal(signal.SIGINT, before)


def swallow() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return
    raise AssertionError("nothing was raised")


def test_what_was_swallowed_comes_with_the_next_step():
    with stage(2) as shown:
        shown.start("epochs")
        shown.advance("")
        swallow()
        with pytest.raises(KeyboardInterrupt):
            shown.advance("")


def test_an_error_that_an_interrupt_became_is_one_again():
    with pytest.raises(ValueError, match="before"), interrupts.told_apart():
        raise ValueError("before")
    with pytest.raises(KeyboardInterrupt), interrupts.told_apart():
        swallow()
        raise ValueError("could not determine the shape")


def test_who_ignores_it_goes_on_ignoring_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.watch()
    signal.raise_signal(signal.SIGINT)
    interrupts.check()
