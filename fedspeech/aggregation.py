"""What an aggregation rule is and what it may know. Pure: it knows neither Flower nor messages.

A rule says how the base model M_s of one speaker is made out of other speakers' personal models.
Most rules are one method, `peers`; see `strategies/random.py` for the shortest. Whoever writes a
rule imports this module, which also passes on what they need of `fedspeech.tensors` and
`fedspeech.racing`.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, TypeVar

import numpy as np

from fedspeech.errors import RuleError
from fedspeech.racing import Race as Race
from fedspeech.racing import check_race as check_race
from fedspeech.tensors import TensorStream as TensorStream
from fedspeech.tensors import interpolate as interpolate
from fedspeech.tensors import weighted_sum as weighted_sum

WEIGHT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class WordErrors:
    """Errors (substitutions + deletions + insertions) of one model on some words of reference."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Word error rate as a fraction; 0 words give 0."""
        return self.errors / self.words if self.words else 0.0


@dataclass(frozen=True)
class BestOf:
    """What `FederationView.best` asks of a device. Raises RuleError where that makes no sense."""

    speakers: tuple[str, ...]
    k: int
    confidence: float
    budget: float

    def __post_init__(self) -> None:
        try:
            check_race(self.k, self.confidence, self.budget)
        except ValueError as error:
            raise RuleError(f"the rule asked for the best models: {error}") from None


class FederationView(ABC):
    """What a rule may know while it decides for one speaker."""

    @property
    @abstractmethod
    def speakers(self) -> tuple[str, ...]:
        """All speakers that sent a personal model, in the order of their ids."""

    @property
    @abstractmethod
    def seconds(self) -> Mapping[str, float]:
        """Seconds of speech that each speaker's personal model was trained on."""

    @abstractmethod
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The names of the model's trained values, layer by layer, the input layer first.

        What a normalization has measured belongs to no layer.
        """

    @abstractmethod
    def distances(self, names: Sequence[str]) -> np.ndarray:
        """Euclidean distances between personal models on the named tensors.

        float64 of shape (speakers, speakers), in the order of `speakers`; zero on the diagonal.
        Read-only, since all speakers share it.
        """

    @abstractmethod
    def generator(self, purpose: str) -> np.random.Generator:
        """A generator that follows from the run's seed, the round, this speaker and the purpose."""

    @abstractmethod
    def word_errors(
        self, candidates: Sequence[str], utterances: str = "train"
    ) -> Awaitable[Mapping[str, WordErrors]]:
        """The word errors of the candidates' personal models on this speaker's own utterances.

        Only that speaker's device can tell: awaiting it is a round trip, which all speakers share.
        """

    @abstractmethod
    def best(
        self, candidates: Sequence[str], k: int, confidence: float = 0.95, budget: float = 0.15
    ) -> Awaitable[Race]:
        """The k candidates that make the fewest errors on this speaker's own training utterances.

        The device races them (`fedspeech/racing.py`): it needs at most the share `budget` of the
        decodings that `word_errors` needs, and says how it ended. Awaiting it is two round trips,
        which all speakers share.
        """

    @abstractmethod
    def generic(self) -> TensorStream:
        """The generic model G."""

    @abstractmethod
    def personal(self, speaker: str) -> TensorStream:
        """The personal model P of a speaker, read from disk one tensor at a time."""

    @abstractmethod
    def total(self) -> TensorStream:
        """The sum of all personal models in float64; computed once for all speakers."""

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """What the rule's `peers` answered for this speaker, once it has; for `combine`."""


class AggregationRule:
    """How the base model M_s of one speaker is made out of other speakers' personal models.

    Override `peers`, or `combine` as well, or `combine` alone. Keyword arguments of `__init__` are
    the settings of the rule's table in the TOML; raise ValueError for those that make no sense.
    """

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """Weights over other speakers, non-negative, summing to 1; empty means M_s = G.

        May await what only a device can tell; what all speakers wait for travels as one batch.
        By default all others weigh the same.
        """
        others = [other for other in view.speakers if other != speaker]
        return equal_weights(others)

    def combine(self, speaker: str, view: FederationView) -> TensorStream:
        """The wider door: any function of the peers' models, as a stream of named tensors.

        The default is the weighted average of `peers`; without peers, G.
        """
        if not view.weights:
            return view.generic()
        names, weights = zip(*sorted(view.weights.items()), strict=True)
        return weighted_sum([view.personal(name) for name in names], weights)

    def mix(self, personal: TensorStream, base: TensorStream, alpha: float) -> TensorStream:
        """alpha * P_s + (1 - alpha) * M_s, unless a rule says otherwise."""
        return interpolate(personal, base, alpha)

    def largest_group(self) -> int | None:
        """How many peers the rule takes at the most, where it has such a number (k)."""
        return None


class GroupRule(AggregationRule):
    """A rule whose peers are at most `k` other speakers; where there are fewer, all of them.

    Raises ValueError unless k is a whole number of at least 1.
    """

    def __init__(self, k: int) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k has to be a whole number of at least 1, found {k!r}")
        self.k = k

    def largest_group(self) -> int:
        """k."""
        return self.k


def equal_weights(speakers: Sequence[str]) -> dict[str, float]:
    """1 / len(speakers) for each; empty where there are none."""
    return {speaker: 1 / len(speakers) for speaker in speakers}


def check_weights(
    rule: AggregationRule, speaker: str, weights: Mapping[str, float], speakers: Sequence[str]
) -> None:
    """Raise RuleError unless the weights are what `peers` may answer for this speaker."""
    gave = f"rule {type(rule).__name__} gave speaker {speaker}"
    if not isinstance(weights, Mapping):
        raise RuleError(f"{gave} {weights!r}; expected a mapping of speakers to weights")
    known = set(speakers)
    for peer, weight in sorted(weights.items()):
        if peer == speaker:
            raise RuleError(f"{gave} a weight on itself ({weight})")
        if peer not in known:
            raise RuleError(f"{gave} an unknown peer: {peer}")
        if not isinstance(weight, Real) or not 0 <= weight < math.inf:
            raise RuleError(
                f"{gave} the weight {weight} on {peer}; expected a finite number of at least 0"
            )
    total = sum(weights.values())
    if weights and abs(total - 1) > WEIGHT_TOLERANCE:
        raise RuleError(f"{gave} weights that sum to {total}, not to 1")


Q = TypeVar("Q")
A = TypeVar("A")


@dataclass
class Question(Generic[Q, A]):
    """Something a coroutine waits for; awaiting it hands it to `ask_together`."""

    asked: Q

    def __await__(self) -> Generator["Question[Q, A]", A, A]:
        return (yield self)


def ask_together(
    coroutines: Mapping[str, Coroutine[Question[Q, A], A | None, Any]],
    exchange: Callable[[dict[str, Q]], Mapping[str, A]],
) -> dict[str, Any]:
    """Run all coroutines; whatever they wait for at the same time is answered in one exchange.

    `exchange` is given {name: question} and returns {name: answer}. A name that it leaves out (a
    device that did not answer) drops out: it is not among the results. Questions and results are
    in the order of the names. Raises RuleError where a coroutine awaits anything but a Question.
    """
    results: dict[str, Any] = {}
    # A coroutine is started by sending it None.
    answers: dict[str, A | None] = dict.fromkeys(sorted(coroutines))
    try:
        while answers:
            questions: dict[str, Q] = {}
            for name, answer in answers.items():
                try:
                    questions[name] = _asked(name, coroutines[name].send(answer))
                except StopIteration as done:
                    results[name] = done.value
            answered = exchange(questions) if questions else {}
            answers = {name: answered[name] for name in questions if name in answered}
    finally:
        for coroutine in coroutines.values():
            coroutine.close()
    return dict(sorted(results.items()))


def _asked(name: str, question: Question[Q, A]) -> Q:
    if not isinstance(question, Question):
        raise RuleError(
            f"the rule awaited {question!r} for {name}; "
            "it can await the view's word_errors and best"
        )
    return question.asked


def ask_peers(
    rule: AggregationRule,
    views: Mapping[str, FederationView],
    exchange: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
    """What `peers` answers for the speaker of each view, checked, in plain floats.

    `exchange` is that of `ask_together`; whose device did not answer is not among the results.

    Raises RuleError where an answer is not allowed, or `peers` is no coroutine.
    """
    if not inspect.iscoroutinefunction(rule.peers):
        raise RuleError(f"rule {type(rule).__name__}: write `async def peers`, not `def peers`")
    coroutines = {speaker: rule.peers(speaker, view) for speaker, view in views.items()}
    answers = ask_together(coroutines, exchange)
    for speaker, weights in answers.items():
        check_weights(rule, speaker, weights, views[speaker].speakers)
    return {
        speaker: {peer: float(weight) for peer, weight in weights.items()}
        for speaker, weights in answers.items()
    }
