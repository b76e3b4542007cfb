"""Tests that `make test` has no time for; `make test-faults` runs them."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

Test = TypeVar("Test", bound=Callable)


def slow(test: Test) -> Test:
    """Skip the test unless everything is asked for, and say so."""
    skip = os.environ.get("FEDSPEECH_FAULTS") != "all"
    reason = "takes long; FEDSPEECH_FAULTS=all runs it"
    return pytest.mark.slow(pytest.mark.skipif(skip, reason=reason)(test))
