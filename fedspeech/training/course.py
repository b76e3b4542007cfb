"""What a model is trained on, update by update: order, augmentation, learning rate, dropout.

One model in `loop.py` and many in `cohort.py` go through the same courses.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from fedspeech import features
from fedspeech.config.model import FeatureSettings
from fedspeech.config.training import Optimization
from fedspeech.features import Batch, Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.seeding import Draws

POOL_BATCHES = 20
"""Utterances are sorted by length among so many batches, then the batches are shuffled."""
T = TypeVar("T")


class Spelling(Protocol):
    """What makes a reference of a transcript, as `Units` do."""

    def encode(self, text: str) -> list[int]:
        """The reference's numbers."""


class Update(NamedTuple):
    """One minibatch with its references, and what holds while it is learned."""

    batch: Batch
    references: list[list[int]]
    done: float
    """The share of all updates that come before it."""
    learning_rate: float
    dropout: float


class Course:
    """Utterances, and the settings by which a model goes through them epoch by epoch.

    Every epoch draws from a generator of its own, named by (seed, round, speaker, purpose, epoch):
    an epoch gives the same model whether the process was interrupted before it or not.
    """

    def __init__(
        self,
        settings: Optimization,
        feature_settings: FeatureSettings,
        units: Spelling,
        utterances: Sequence[Utterance],
        name: tuple[int, int, str, str],
        buckets: int | None = None,
    ) -> None:
        """Minibatches are drawn out of so many buckets of lengths; without, out of pools."""
        self.settings = settings
        self.utterances = list(utterances)
        self.references = [units.encode(utterance.text) for utterance in utterances]
        self._features, self._name, self._buckets = feature_settings, name, buckets

    @property
    def updates_per_epoch(self) -> int:
        """Minibatches in an epoch; the last one may be smaller."""
        return math.ceil(len(self.utterances) / self.settings.batch_size)

    @property
    def largest_batch(self) -> tuple[int, int]:
        """The most utterances and frames that a minibatch can have."""
        frames = max(
            len(each) for utterance in self.utterances for each in utterance.log_mel.values()
        )
        return min(self.settings.batch_size, len(self.utterances)), frames

    def draws(self, epoch: int) -> Draws:
        """The generator of an epoch, counted from 0: for `updates`, and for the model's dropout."""
        seed, round, speaker, purpose = self._name
        return Draws(seed, round, speaker, f"{purpose}, epoch {epoch}")

    def updates(self, epoch: int) -> Iterator[Update]:
        """The updates of an epoch, each drawn when it is asked for, while `draws` are taken up."""
        for number, chosen in enumerate(self.batches(), epoch * self.updates_per_epoch):
            yield self.update(chosen, number)

    def update(self, chosen: Sequence[int], number: int) -> Update:
        """These utterances as one minibatch, after `number` others of the whole training."""
        settings, done = self.settings, number / (self.updates_per_epoch * self.settings.epochs)
        varied = settings.augmentation if done >= settings.clean else None
        return Update(
            features.batch([self.utterances[i] for i in chosen], self._features, varied),
            [self.references[i] for i in chosen],
            done,
            self.rate(done),
            piecewise_linear(settings.dropout, done),
        )

    def rate(self, done: float) -> float:
        """The learning rate after the share `done` (0 … 1) of all updates."""
        return learning_rate(self.settings, done)

    def batches(self) -> list[list[int]]:
        """The utterances of each minibatch of an epoch, by PyTorch's generator."""
        size = self.settings.batch_size
        parts = self._pools() if self._buckets is None else self._shuffled(self._buckets)
        batches = [part[i : i + size] for part in parts for i in range(0, len(part), size)]
        return _drawn(batches)

    def _pools(self) -> list[list[int]]:
        """Utterances of any lengths, in each pool the shortest first."""
        order = _drawn(range(len(self.utterances)))
        size = self.settings.batch_size * POOL_BATCHES
        return [sorted(order[i : i + size], key=self._length) for i in range(0, len(order), size)]

    def _shuffled(self, buckets: int) -> list[list[int]]:
        """Utterances of like length, in a drawn order. All parts but the last, the longest ones,
        are whole minibatches.
        """
        order = sorted(range(len(self.utterances)), key=self._length)
        size, count = self.settings.batch_size, self.updates_per_epoch
        buckets = min(buckets, count)
        ends = [count * i // buckets * size for i in range(buckets + 1)]
        return [_drawn(order[start:end]) for start, end in itertools.pairwise(ends)]

    def _length(self, index: int) -> int:
        return len(self.utterances[index].log_mel[1.0])


def _drawn(some: Sequence[T]) -> list[T]:
    """All of them in an order by PyTorch's generator."""
    return [some[i] for i in torch.randperm(len(some)).tolist()]


def fitting(utterances: Sequence[Utterance], description: ModelDescription) -> list[Utterance]:
    """Those with at most as many units as can be spelled in their time, at their slowest speed.

    CTC spells one in a step of the model at most. A transducer spells as many as it likes, but
    nobody says more than one in a frame. Raises CorpusError where the vocabulary lacks something.
    """
    frames = 1 if description.criterion == "rnnt" else description.subsampling

    def most(utterance: Utterance) -> int:
        return -(-max(map(len, utterance.log_mel.values())) // frames)

    return [u for u in utterances if len(description.units.encode(u.text)) <= most(u)]


def learning_rate(settings: Optimization, done: float) -> float:
    """The rate after the share `done` (0 … 1) of all updates."""
    if done < settings.warmup:
        return settings.learning_rate * done / settings.warmup
    high, low = settings.learning_rate, settings.final_learning_rate
    held = settings.warmup + settings.hold
    left = max((done - held) / (1 - held), 0.0) if held < 1 else 0.0
    if settings.decay == "cosine":
        return low + (high - low) * (1 + math.cos(math.pi * left)) / 2
    return high * math.pow(low / high, left)


def piecewise_linear(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x of straight lines through the points; constant beyond the first and last."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
