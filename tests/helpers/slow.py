"""Tests that `make test` has no time for; `make test-faults` runs them."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

Test = TypeVar("Test", bound=Callable)


SLOW = (
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("FEDSPEECH_FAULTS") != "all",
        reason="takes long; FEDSPEECH_FAULTS=all runs it",
    ),
)
"""Marks that skip a test unless everything is asked for, and say so."""


def slow(test: Test) -> Test:
    """The test with these marks."""
    for mark in SLOW:
        test = mark(test)
    return test
