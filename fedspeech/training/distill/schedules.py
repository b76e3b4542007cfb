"""How likely it is that a module is the student's own, while the student learns (LCMR)."""

import math
from collections.abc import Callable

from fedspeech.config.distillation import ReplacingSettings

Schedule = Callable[[float, float, float], float]
"""(p_0, tau / tau_ft, B) -> p; after tau_ft every schedule is at 1"""


def logarithmic(first: float, done: float, base: float) -> float:
    """min(log_B(k * tau + b), 1) with b = B^p_0 and k = (B - b) / tau_ft."""
    begin = base**first
    return min(math.log((base - begin) * done + begin, base), 1.0)


SCHEDULES: dict[str, Schedule] = {
    "constant": lambda first, done, base: first,
    "linear": lambda first, done, base: first + (1 - first) * done,
    "logarithmic": logarithmic,
    "exponential": lambda first, done, base: first ** (1 - done),
}


def rate(settings: ReplacingSettings, done: float) -> float:
    """The probability p of the student's module after the share `done` (0 … 1) of all updates."""
    if done >= settings.phase:
        return 1.0
    schedule = SCHEDULES[settings.schedule]
    return schedule(settings.rate, done / settings.phase, settings.base)
