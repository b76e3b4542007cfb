"""Replacing rates, by the paper's formulas and by hand."""

import math

import pytest
from pydantic import ValidationError

from fedspeech.config.distillation import ReplacingSettings
from fedspeech.training.distill.schedules import SCHEDULES, rate

PHASE = 0.75


def found(schedule: str, first: float, done: float, base: float = 40.0) -> float:
    return rate(ReplacingSettings(schedule=schedule, rate=first, base=base, phase=PHASE), done)


@pytest.mark.parametrize(
    ("schedule", "first", "share", "wanted"),
    [
        ("constant", 0.75, 0.0, 0.75),
        ("constant", 0.75, 0.99, 0.75),
        ("linear", 0.25, 0.0, 0.25),
        ("linear", 0.25, 0.5, 0.625),
        ("exponential", 0.25, 0.0, 0.25),
        ("exponential", 0.25, 0.5, 0.5),  # 0.25^(1/2)
        ("exponential", 0.0625, 0.75, 0.5),  # 0.0625^(1/4)
        ("logarithmic", 0.5, 0.0, 0.5),
        # B = 40, p_0 = 0.5: b = 6.32456, k * tau = 16.83772 half way; ln 23.16228 / ln 40.
        ("logarithmic", 0.5, 0.5, 0.85190),
        # b = 40^0.25 = 2.51487, a tenth of 37.48513 is 3.74851; ln 6.26338 / ln 40.
        ("logarithmic", 0.25, 0.1, 0.49736),
    ],
)
def test_each_schedule_follows_its_formula(schedule, first, share, wanted):
    assert found(schedule, first, share * PHASE) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("base", [math.e, 20.0, 40.0])
def test_the_logarithm_in_updates_is_the_papers(base):
    """min(log_B(k * tau + b), 1), b = B^p_0, k = (B - b) / tau_ft, with tau counted in updates."""
    first, last, updates = 0.25, 300, 400
    b = base**first
    k = (base - b) / last
    for tau in (0, 1, 77, 150, 299):
        wanted = min(math.log(k * tau + b) / math.log(base), 1)
        assert found("logarithmic", first, tau / updates, base) == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("first", [0.01, 0.25, 1.0])
def test_every_schedule_rises_from_its_first_value_to_one(schedule, first):
    rates = [found(schedule, first, done / 1000) for done in range(1001)]
    assert rates[0] == pytest.approx(first)
    assert rates == sorted(rates) and all(0 < value <= 1 for value in rates)
    assert set(rates[750:]) == {1.0}
    if first < 1 and schedule != "constant":
        assert rates[749] < 1 and rates[749] == pytest.approx(1, abs=0.01)


def test_a_larger_base_rises_sooner():
    halves = [found("logarithmic", 0.25, PHASE / 2, base) for base in (1.001, math.e, 20.0, 40.0)]
    assert halves == sorted(halves)
    assert halves[0] == pytest.approx(found("linear", 0.25, PHASE / 2), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 0.0}, "greater than 0"),
        ({"rate": 1.1}, "less than or equal to 1"),
        ({"rate": -0.5}, "greater than 0"),
        ({"base": 1.0}, r"greater than or equal to 1\.001"),
        ({"base": 1.0000000000000002}, r"greater than or equal to 1\.001"),
        ({"schedule": "cosine"}, "'constant', 'linear', 'logarithmic' or 'exponential'"),
        ({"phase": 1.0}, "phase = 1: a logarithmic schedule from 0.5 never reaches 1"),
        ({"phase": 1.0, "schedule": "constant", "rate": 0.75}, "a constant schedule from 0.75"),
        ({"strategy": 3}, "Input should be 1 or 2"),
    ],
)
def test_what_is_no_schedule_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        ReplacingSettings.model_validate(settings)


def test_a_rate_of_one_needs_no_end():
    assert rate(ReplacingSettings(schedule="constant", rate=1.0, phase=1.0), 0.5) == 1
