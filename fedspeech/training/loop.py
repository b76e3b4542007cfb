"""The local loop: one model, one set of utterances, one optimizer. Plain on purpose."""

import itertools
import math
from collections.abc import Sequence

import torch

from fedspeech import features, seeding
from fedspeech.config import FeatureSettings, Optimization
from fedspeech.features import Utterance
from fedspeech.training.criteria import CRITERIA
from fedspeech.units import Units

POOL_BATCHES = 20
"""Utterances are sorted by length among so many batches, then the batches are shuffled."""


class Loop:
    """Trains a model in place, epoch by epoch.

    Every epoch draws from a generator of its own, named by (seed, round, speaker, purpose, epoch):
    an epoch gives the same model whether the process was interrupted before it or not.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: Optimization,
        feature_settings: FeatureSettings,
        units: Units,
        utterances: Sequence[Utterance],
        name: tuple[int, int, str, str],
        criterion: str = "ctc",
    ) -> None:
        self.model = model
        self.settings = settings
        self.features = feature_settings
        self.utterances = list(utterances)
        self.references = [units.encode(utterance.text) for utterance in utterances]
        self.criterion = CRITERIA[criterion]
        self.bf16 = computes_in_bf16(settings.precision)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, weight_decay=settings.weight_decay, fused=True
        )
        self._name = name

    @property
    def updates_per_epoch(self) -> int:
        """Minibatches in an epoch; the last one may be smaller."""
        return math.ceil(len(self.utterances) / self.settings.batch_size)

    def epoch(self, number: int) -> float:
        """Train one epoch (counted from 0); the mean loss in nats per utterance."""
        seed, round, speaker, purpose = self._name
        self.model.train()
        total = 0.0
        with seeding.scoped(seed, round, speaker, f"{purpose}, epoch {number}"):
            for update, chosen in enumerate(self._batches()):
                total += self._update(chosen, number * self.updates_per_epoch + update)
        return total / len(self.utterances)

    def _update(self, chosen: Sequence[int], number: int) -> float:
        done = number / (self.updates_per_epoch * self.settings.epochs)
        self._set_progress(done)
        varied = self.settings.augmentation if done >= self.settings.clean else None
        batch = features.batch([self.utterances[i] for i in chosen], self.features, varied)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits, lengths = self.model(batch.features, batch.lengths)
        losses = self.criterion(logits.float(), lengths, [self.references[i] for i in chosen])
        self.optimizer.zero_grad()
        torch.autograd.backward(losses.mean())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        return float(losses.detach().sum())

    def _batches(self) -> list[list[int]]:
        size = self.settings.batch_size
        order = torch.randperm(len(self.utterances)).tolist()
        pools = [
            sorted(order[i : i + size * POOL_BATCHES], key=self._length)
            for i in range(0, len(order), size * POOL_BATCHES)
        ]
        batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
        return [batches[i] for i in torch.randperm(len(batches)).tolist()]

    def _length(self, index: int) -> int:
        return len(self.utterances[index].log_mel[1.0])

    def _set_progress(self, done: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, done)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = piecewise_linear(self.settings.dropout, done)


def learning_rate(settings: Optimization, done: float) -> float:
    """The rate after the share `done` (0 … 1) of all updates."""
    if done < settings.warmup:
        return settings.learning_rate * done / settings.warmup
    high, low = settings.learning_rate, settings.final_learning_rate
    left = (done - settings.warmup) / (1 - settings.warmup) if settings.warmup < 1 else 0.0
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


def computes_in_bf16(precision: str) -> bool:
    """Whether matrix products are taken in bfloat16 (`auto`: where the processor can)."""
    if precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return precision == "bf16"
