"""What devices are asked to judge, and where their answers are filed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedspeech.rules import GENERIC
from strategies.outcome import Outcome, at_budget


class Judged(NamedTuple):
    """What devices are asked about: a base, their alphas and the cells' alphas, and a choice.

    `mixed` is the alpha at which the server has mixed already, None where the devices mix; `at` is
    one more budget of what is pushed.
    """

    base: str
    mixed: float | None
    cells: Mapping[float, float]
    choose: Sequence[float]
    at: str | None = None

    @property
    def name(self) -> str:
        """Of the base as it is pushed."""
        return at_budget(self.base, self.at)


def judgements(
    base: str, alphas: Sequence[float], on_server: bool, at: str | None
) -> Iterator[Judged]:
    """What is asked about a base: once for all alphas where the devices mix, else once for each."""
    tested = tuple(alpha for alpha in alphas if alpha != 1.0)
    if base == GENERIC:  # alpha = 1 is P_s whatever the base: it is judged here, once
        tested = tuple(sorted({0.0, *alphas, 1.0}))
    if not on_server:
        yield Judged(base, None, {alpha: alpha for alpha in tested}, alphas, at)
        return
    for alpha in tested:
        yield Judged(base, alpha, {0.0: alpha}, (), at)


def file(outcome: Outcome, judged: Judged, speaker: str, said: Mapping[str, Any]) -> bool:
    """Put a speaker's answer in its cells; False where its test_s is not what it was before."""
    known = outcome.words.setdefault(speaker, np.array(said["words"]))
    if known.tolist() != said["words"]:
        return False
    for alpha, errors in zip(judged.cells.values(), said["errors"], strict=True):
        outcome.errors.setdefault((judged.name, alpha), {})[speaker] = np.array(errors)
    if said["chosen"] is not None:
        outcome.chosen.setdefault(judged.name, {})[speaker] = said["chosen"]
    return True
