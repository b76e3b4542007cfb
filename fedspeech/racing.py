"""Which k of many candidates make the fewest errors, without judging all of them on everything.

A race has rungs. On each, the candidates that are left are judged on further utterances, the same
for all of them and about twice as many as before; then some drop out. Two things drop a candidate:

- confidence, as in the Hoeffding races of Maron & Moore (NIPS 6, 1994): it is worse than each of
  the k best so far by more than chance explains. The bound is on the differences in errors over
  common utterances, as Moore & Lee (ICML 1994) pair theirs: hard utterances are hard for all. It
  takes the differences of two equally good candidates to be symmetric (`_worse`).
- the budget, as in successive halving (Karnin, Koren & Somekh, ICML 2013; Jamieson & Talwalkar,
  AISTATS 2016): at most a fixed share survives each rung, whatever is known by then.

Utterances are drawn without replacement, so that whoever was judged on all of them is known exactly
and a race that drops nobody is the exhaustive search.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np

FIRST_SHARE = 0.3
"""The share of the budget that goes into judging every candidate on the first rung."""
FIRST_UTTERANCES = 1 / 16
"""The most of all utterances that the first rung takes, however large the budget."""
LEAST_UTTERANCES = 2
"""The least of them, where twice as many are within the budget: one utterance says little, and how
many errors are in it would be told of those that drop out at once."""

Errors = Callable[[Sequence[str], np.ndarray], np.ndarray]
"""The errors of some candidates on some utterances, named by their indices: int64 of shape
(candidates, utterances)."""


@dataclass(frozen=True)
class Race:
    """How a race ended: the kept candidates, best first, and what every candidate was judged on."""

    kept: tuple[str, ...]
    errors: dict[str, int]
    words: dict[str, int]
    decodings: int
    """Utterance decodings that were needed."""
    exhaustive: int
    """What judging every candidate on every utterance needs."""
    confident: bool
    """Whether confidence alone dropped the others; else the budget cut some of them off."""


class Rung(NamedTuple):
    """How many utterances candidates have been judged on, and how many of them go on at most."""

    utterances: int
    survivors: int


def check_race(k: int, confidence: float, budget: float) -> None:
    """Raise ValueError unless a race can be run with these."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k has to be a whole number of at least 1, found {k!r}")
    if not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise ValueError(f"confidence has to be between 0 and 1, found {confidence!r}")
    if not isinstance(budget, Real) or not 0 < budget <= 1:
        raise ValueError(f"budget has to be above 0 and at most 1, found {budget!r}")


def uncontested(candidates: Iterable[str], utterances: int) -> Race:
    """The race of at most k candidates: all are kept, in the order of names, and none is judged."""
    names = sorted(candidates)
    nothing = dict.fromkeys(names, 0)
    return Race(tuple(names), nothing, dict(nothing), 0, len(names) * utterances, confident=True)


def ladder(candidates: int, k: int, utterances: int, budget: float) -> list[Rung]:
    """The rungs of a race of more than k candidates.

    `budget` is the most share of candidates * utterances decodings that they may need together, and
    never less than one utterance for each candidate. The share that survives each rung is the
    largest that the budget allows; with a budget of 1 that is everybody, up to the last rung.
    """
    allowed = max(candidates, math.floor(budget * candidates * utterances))
    least = max(1, min(LEAST_UTTERANCES, int(budget * utterances / 2)))
    heard = [max(least, int(utterances * min(FIRST_SHARE * budget, FIRST_UTTERANCES)))]
    while heard[-1] < utterances:
        heard.append(min(2 * heard[-1], utterances))
    shares = (survivors / candidates for survivors in range(candidates, k - 1, -1))
    ladders = (_rungs(candidates, k, heard, share) for share in shares)
    return next(rungs for rungs in ladders if _decodings(candidates, rungs) <= allowed)


def _rungs(candidates: int, k: int, heard: Sequence[int], share: float) -> list[Rung]:
    """Rungs that each let a share of the candidates go on, up to the one that leaves k."""
    rungs = []
    for number, utterances in enumerate(heard, 1):
        last = number == len(heard)
        survivors = k if last else max(k, int(candidates * share**number))
        rungs.append(Rung(utterances, survivors))
        if survivors == k:
            break
    return rungs


def _decodings(candidates: int, rungs: Sequence[Rung]) -> int:
    """What the rungs need where nobody is dropped by confidence."""
    total, left, heard = 0, candidates, 0
    for rung in rungs:
        total += left * (rung.utterances - heard)
        left, heard = rung.survivors, rung.utterances
    return total


def first_rung(
    candidates: int, k: int, utterances: int, generator: np.random.Generator, budget: float
) -> tuple[np.ndarray, int]:
    """The utterances that `race` begins with, and how many candidates it can need after them.

    These are among the ones with the fewest errors on those utterances, of equal ones the first by
    name: who judges candidates as they come can forget all others. The generator has to be in the
    state in which `race` gets it.
    """
    rung = ladder(candidates, k, utterances, budget)[0]
    return generator.permutation(utterances)[: rung.utterances], rung.survivors


def race(
    candidates: Iterable[str],
    k: int,
    words: np.ndarray,
    errors: Errors,
    generator: np.random.Generator,
    confidence: float,
    budget: float,
) -> Race:
    """The k candidates with the fewest errors, as far as the budget lets that be known.

    `words` are the words of reference of each utterance, int64 (utterances,), at least one;
    `generator` draws their order. With at least the given confidence no candidate that belongs
    among the k is dropped by the bound, as far as what it takes for granted holds (`_worse`); where
    the budget drops any, `confident` is False. Of equal candidates the first by name is the better.
    Raises ValueError as `check_race` does.
    """
    check_race(k, confidence, budget)
    names = sorted(candidates)
    if len(names) <= k:
        return uncontested(names, len(words))
    rungs = ladder(len(names), k, len(words), budget)
    order = generator.permutation(len(words))
    tests = len(rungs) * k * (len(names) - k)
    deviations = math.sqrt(2 * math.log(tests / (1 - confidence)))
    left, judged = np.arange(len(names)), np.zeros((len(names), 0), dtype=np.int64)
    heard, wrong = np.zeros_like(left), np.zeros_like(left)
    confident = True
    for rung in rungs:
        new = order[judged.shape[1] : rung.utterances]
        judged = np.hstack([judged, errors([names[i] for i in left], new)])
        heard[left], wrong[left] = rung.utterances, judged.sum(1)
        ranked = np.argsort(wrong[left], kind="stable")
        worse = _worse(judged[ranked], k, len(words), deviations)
        confident &= rung.utterances == len(words) or bool(worse[rung.survivors :].all())
        stay = np.sort(ranked[: rung.survivors][~worse[: rung.survivors]])
        left, judged = left[stay], judged[stay]
        if len(left) == k:
            break
    spoken = np.cumsum(words[order])[heard - 1]
    return Race(
        kept=tuple(names[i] for i in left[np.argsort(wrong[left], kind="stable")]),
        errors=dict(zip(names, wrong.tolist(), strict=True)),
        words=dict(zip(names, spoken.tolist(), strict=True)),
        decodings=int(heard.sum()),
        exhaustive=len(names) * len(words),
        confident=confident,
    )


def _worse(judged: np.ndarray, k: int, utterances: int, deviations: float) -> np.ndarray:
    """Which candidates are worse than each of the first k by more than chance explains.

    `judged` are errors, best candidate first, int64 (candidates, judged utterances) out of all
    `utterances`. A sum of differences that are symmetric around zero is beyond x times the root of
    the sum of their squares with a probability of at most exp(-x² / 2): that is Hoeffding's
    inequality for their signs (Efron, JASA 1969). So a few utterances that happen to agree are not
    certain, as they would be by their variance. The correction for a finite population makes the
    bound exact at its end.

    Differences are symmetric where neither of two candidates is better on any kind of utterance.
    Where the better one makes many single errors and the worse one all of its errors on a few
    utterances, they are not, and while those few have not been heard the better one is dropped more
    often than the confidence allows. A bound that needs no symmetry (of Bernstein's kind) has to
    reckon with the most errors that an utterance can have: with some hundred utterances it drops
    nobody before the end.
    """
    unseen = 1 - judged.shape[1] / utterances
    worse = np.arange(len(judged)) >= k
    for best in judged[:k]:
        differences = judged - best
        squares = np.square(differences).sum(1)
        worse &= differences.sum(1) > deviations * np.sqrt(unseen * squares)
    return worse
