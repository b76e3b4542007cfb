"""Dummy speakers: tiny models in memory and tables in place of speech and devices."""

import weakref
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from scipy.spatial.distance import cdist

from fedspeech import racing, seeding
from fedspeech.aggregation import (
    AggregationRule,
    BestOf,
    FederationView,
    Question,
    Race,
    WordErrors,
    ask_peers,
)
from fedspeech.errors import RuleError
from fedspeech.tensors import Tensors, TensorStream, sha256

SHAPES = {"tdnn.0": (4, 3), "tdnn.1": (4, 4), "tdnn.2": (4, 4), "output": (5, 4)}
"""Shape of the weight of each layer of a dummy model; its bias has as many values as that rows."""
WORDS = 20
"""Words of reference in the training speech of each dummy speaker."""


class DummyFederation:
    """Speakers without speech: tiny models in memory, and a table in place of the devices.

    What it holds follows from the seed and may be overwritten before a rule runs: `generic` (G),
    `personal` (speaker -> P), `word_errors` ((speaker, candidate) -> WordErrors) and `seconds`.
    Models are float32 with a float64 output layer, so that a rule that forces a dtype is noticed.
    `exchanges` counts how often the devices were asked; `readings` tells what was read.
    """

    def __init__(self, speakers: int = 6, seed: int = 0) -> None:
        names = [f"s{i:02}" for i in range(speakers)]
        self.seed, self.round = seed, 1
        self.generic = _noise(seed, "generic")
        self.personal = {name: _noise(seed, name, self.generic) for name in names}
        self.word_errors: dict[tuple[str, str], WordErrors] = {}
        self.seconds: dict[str, float] = {}
        for name in names:
            draw = seeding.generator(seed, 0, name, "dummy speech")
            self.seconds[name] = float(draw.uniform(60, 300))
            # Few distinct values: a rule has to say what it does with ties.
            errors = draw.integers(0, 4, len(names))
            self.word_errors |= {
                (name, other): WordErrors(int(errors[i]), WORDS) for i, other in enumerate(names)
            }
        self.exchanges = 0
        self.backwards = False
        """Whether devices, and candidates within an answer, come in the reverse order."""
        self.readings: list[Reading] = []

    @property
    def speakers(self) -> tuple[str, ...]:
        """All speakers, in the order of their ids."""
        return tuple(sorted(self.personal))

    @cached_property
    def total(self) -> Tensors:
        """The sum of all personal models in float64; taken when it is first asked for."""
        models = [self.personal[speaker] for speaker in self.speakers]
        zero = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in models[0].items()}
        return {name: sum((m[name].double() for m in models), t) for name, t in zero.items()}

    def view(self, speaker: str, weights: Mapping[str, float] | None = None) -> FederationView:
        """What a rule may know for this speaker; with `weights`, once `peers` has answered."""
        return _DummyView(self, speaker, weights)

    def exchange(
        self, questions: Mapping[str, Sequence[str] | BestOf]
    ) -> dict[str, dict[str, WordErrors] | Race]:
        """What the devices of the asking speakers answer about their candidates."""
        self.exchanges += 1
        asked = list(questions.items())[:: self._step]
        return {speaker: self._answer(speaker, question) for speaker, question in asked}

    @property
    def _step(self) -> int:
        return -1 if self.backwards else 1

    def _answer(self, speaker: str, asked: Sequence[str] | BestOf) -> dict[str, WordErrors] | Race:
        if isinstance(asked, BestOf):
            return self._race(speaker, asked)
        return {other: self.word_errors[speaker, other] for other in asked[:: self._step]}

    def _race(self, speaker: str, asked: BestOf) -> Race:
        """A race on utterances of one word; which of them a candidate gets wrong is drawn."""
        heard = {other: self._by_word(speaker, other) for other in asked.speakers[:: self._step]}
        words = {len(errors) for errors in heard.values()}
        if len(words) > 1:
            raise RuleError(f"a race needs the same words for all, {speaker} has {sorted(words)}")
        return racing.race(
            heard,
            asked.k,
            np.ones(max(words, default=0), dtype=np.int64),
            lambda names, utterances: np.stack([heard[name][utterances] for name in names]),
            seeding.generator(self.seed, self.round, speaker, "race"),
            asked.confidence,
            asked.budget,
        )

    def _by_word(self, speaker: str, other: str) -> np.ndarray:
        """The errors of `word_errors` on each word, int64 (words,)."""
        told = self.word_errors[speaker, other]
        draw = seeding.generator(self.seed, 0, speaker, f"errors of {other}")
        each = np.full(told.words, told.errors // told.words)
        each[draw.permutation(told.words)[: told.errors % told.words]] += 1
        return each

    def peers(
        self, rule: AggregationRule, speakers: Iterable[str] | None = None
    ) -> dict[str, dict[str, float]]:
        """What the rule's `peers` answers for these speakers (all of them), asked together."""
        asked = self.speakers if speakers is None else speakers
        return ask_peers(rule, {speaker: self.view(speaker) for speaker in asked}, self.exchange)

    def bases(self, rule: AggregationRule) -> dict[str, Tensors]:
        """M_s for every speaker."""
        answers = self.peers(rule)
        return {s: collect(rule.combine(s, self.view(s, w))) for s, w in answers.items()}

    def read(self, what: str, tensors: Tensors) -> TensorStream:
        """The tensors in the order of names; `readings` tells how far they were read."""
        reading = Reading(what)
        self.readings.append(reading)
        for name in sorted(tensors):
            yield name, reading.hand_out(tensors[name])

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of every model, to see whether one was changed."""
        models = {"the generic model": self.generic, "the sum of all models": self.total}
        models |= {f"the personal model of {s}": tensors for s, tensors in self.personal.items()}
        return {what: sha256(tensors) for what, tensors in models.items()}


@dataclass
class Reading:
    """How far one stream was read, and how many of its tensors were in memory at once."""

    what: str
    read: int = 0
    held: int = 0
    most: int = 0

    def hand_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values, so that a change to them is seen, as an object that can be watched."""
        watched = tensor.detach()
        weakref.finalize(watched, self._let_go)
        self.read += 1
        self.held += 1
        self.most = max(self.most, self.held)
        return watched

    def _let_go(self) -> None:
        self.held -= 1


@dataclass
class _DummyView(FederationView):
    federation: DummyFederation
    speaker: str
    answered: Mapping[str, float] | None = None

    @property
    def speakers(self) -> tuple[str, ...]:
        return self.federation.speakers

    @property
    def seconds(self) -> Mapping[str, float]:
        return MappingProxyType(self.federation.seconds)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        return tuple((f"{layer}.bias", f"{layer}.weight") for layer in SHAPES)

    def distances(self, names: Sequence[str]) -> np.ndarray:
        models = [self.federation.personal[speaker] for speaker in self.speakers]
        flat = [
            np.concatenate([m[name].double().numpy().ravel() for name in names]) for m in models
        ]
        distances: np.ndarray = cdist(flat, flat)
        distances.setflags(write=False)
        return distances

    def generator(self, purpose: str) -> np.random.Generator:
        return seeding.generator(self.federation.seed, self.federation.round, self.speaker, purpose)

    def word_errors(
        self, candidates: Sequence[str], utterances: str = "train"
    ) -> Awaitable[Mapping[str, WordErrors]]:
        return Question(self._known(candidates))

    def best(
        self, candidates: Sequence[str], k: int, confidence: float = 0.95, budget: float = 0.15
    ) -> Awaitable[Race]:
        return Question(BestOf(self._known(sorted(set(candidates))), k, confidence, budget))

    def _known(self, candidates: Sequence[str]) -> tuple[str, ...]:
        for other in candidates:
            if other not in self.federation.personal:
                raise RuleError(f"the rule asked {self.speaker} about an unknown speaker: {other}")
        return tuple(candidates)

    def generic(self) -> TensorStream:
        return self.federation.read("the generic model", self.federation.generic)

    def personal(self, speaker: str) -> TensorStream:
        tensors = self.federation.personal[speaker]
        return self.federation.read(f"the personal model of {speaker}", tensors)

    def total(self) -> TensorStream:
        return self.federation.read("the sum of all models", self.federation.total)

    @property
    def weights(self) -> Mapping[str, float]:
        if self.answered is None:
            raise RuleError("the rule asked for `weights` before its `peers` had answered")
        return self.answered


def collect(stream: TensorStream) -> Tensors:
    """The stream as a whole, in tensors of its own."""
    return {name: tensor.clone() for name, tensor in stream}


def _noise(seed: int, name: str, base: Tensors | None = None) -> Tensors:
    """A drawn model; with a base, one near to it."""
    draw = seeding.generator(seed, 0, name, "dummy model")
    model = {}
    for layer, shape in SHAPES.items():
        for tensor, size in ((f"{layer}.bias", shape[:1]), (f"{layer}.weight", shape)):
            dtype = torch.float64 if layer == "output" else torch.float32
            drawn = torch.from_numpy(draw.normal(size=size)).to(dtype)
            model[tensor] = drawn if base is None else base[tensor] + 0.1 * drawn
    return dict(sorted(model.items()))
