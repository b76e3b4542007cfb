"""What a rule may know of this federation for one speaker."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fedspeech import seeding
from fedspeech.aggregation import BestOf, FederationView, Question, Race, WordErrors
from fedspeech.errors import RuleError
from fedspeech.population import Population
from fedspeech.tensors import TensorStream


class Candidates(NamedTuple):
    """A question to one speaker's device: how do these speakers' models do on your utterances?"""

    speakers: tuple[str, ...]
    part: str


@dataclass
class Federation:
    """What all speakers' views share."""

    population: Population
    seconds: dict[str, float]
    """Of every speaker that sent a personal model, in the order of their ids."""
    layers: dict[str, tuple[str, ...]]
    """Tensor names by layer, the input layer first."""
    seed: int
    round: int
    _distances: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The ids in their order."""
        return tuple(self.seconds)

    def distances(self, names: Sequence[str]) -> np.ndarray:
        """Distances between all personal models on the named tensors; computed once."""
        key = tuple(names)
        if key not in self._distances:
            found = self.population.distances(self.speakers, names)
            found.setflags(write=False)
            self._distances[key] = found
        return self._distances[key]


class SpeakerView(FederationView):
    """The federation as one speaker's turn of a rule sees it."""

    def __init__(self, federation: Federation, speaker: str) -> None:
        self._federation, self._speaker = federation, speaker
        self._weights: Mapping[str, float] = {}

    @property
    def speakers(self) -> tuple[str, ...]:
        """All speakers that sent a personal model, in the order of their ids."""
        return self._federation.speakers

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of speech in each speaker's train_s."""
        return self._federation.seconds

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The names of the model's trained values, layer by layer, the input layer first."""
        return tuple(self._federation.layers.values())

    def distances(self, names: Sequence[str]) -> np.ndarray:
        """Euclidean distances, float64 (speakers, speakers)."""
        return self._federation.distances(names)

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator of this speaker's own."""
        federation = self._federation
        return seeding.generator(federation.seed, federation.round, self._speaker, purpose)

    def word_errors(
        self, candidates: Sequence[str], utterances: str = "train"
    ) -> Awaitable[Mapping[str, WordErrors]]:
        """Ask this speaker's device. Raises RuleError about speakers or speech that it lacks."""
        known = self._known(candidates)
        if utterances != "train":
            raise RuleError(
                f"the rule asked {self._speaker} about utterances of {utterances!r}, "
                "expected 'train'"
            )
        question: Question[Candidates, Mapping[str, WordErrors]]
        question = Question(Candidates(known, utterances))
        return question

    def best(
        self, candidates: Sequence[str], k: int, confidence: float = 0.95, budget: float = 0.15
    ) -> Awaitable[Race]:
        """Let this speaker's device race them. Raises RuleError as `word_errors` does."""
        question: Question[BestOf, Race]
        question = Question(BestOf(self._known(sorted(set(candidates))), k, confidence, budget))
        return question

    def _known(self, candidates: Sequence[str]) -> tuple[str, ...]:
        if unknown := sorted(set(candidates) - set(self.speakers)):
            raise RuleError(
                f"the rule asked {self._speaker} about an unknown speaker: {unknown[0]}"
            )
        return tuple(candidates)

    def generic(self) -> TensorStream:
        """G."""
        return self._federation.population.generic()

    def personal(self, speaker: str) -> TensorStream:
        """P of a speaker."""
        return self._federation.population.personal(speaker)

    def total(self) -> TensorStream:
        """The sum of all personal models in float64."""
        return self._federation.population.total(self.speakers)

    @property
    def weights(self) -> Mapping[str, float]:
        """What `peers` answered."""
        return self._weights

    def decide(self, weights: Mapping[str, float]) -> None:
        """Keep what `peers` answered."""
        self._weights = dict(weights)
