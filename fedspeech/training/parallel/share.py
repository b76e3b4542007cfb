"""What each learner hears: every epoch's speech, cut among all learners without replacement.

The utterances of an epoch are drawn in one order for all learners, sorted by length among
neighbours, and cut into joined batches; a joined batch is cut into a part for each learner, of
similar lengths. Parts are numbered through the whole training. Synchronous methods deal them out:
learner i takes part i of each joined batch. Asynchronous ones let the learners take the next part
that nobody has, so that a slow learner takes fewer of them. Either way every utterance is heard
once in an epoch, and what is drawn for a part (augmentation, dropout) is named by its number and
not by who learns it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from fedspeech.config.data_parallel import ParallelTraining
from fedspeech.config.model import FeatureSettings
from fedspeech.features import Utterance
from fedspeech.seeding import Draws
from fedspeech.training.course import Course, Spelling, Update, learning_rate

PURPOSE = "data-parallel"


class Part(NamedTuple):
    """What one learner hears of a joined batch."""

    number: int
    """Counted from 0 through the whole training."""
    chosen: list[int]
    """Its utterances."""
    joined: int
    """How many utterances the joined batch has."""


class Share(Course):
    """The course of many learners, part by part; there are as many utterances at least."""

    def __init__(
        self,
        training: ParallelTraining,
        feature_settings: FeatureSettings,
        units: Spelling,
        utterances: Sequence[Utterance],
        seed: int,
        learners: int,
    ) -> None:
        joined = training.model_copy(update={"batch_size": training.batch_size * learners})
        super().__init__(joined, feature_settings, units, utterances, (seed, 0, "", PURPOSE))
        self.training, self.learners, self.seed = training, learners, seed
        self._cut = functools.lru_cache(maxsize=2)(self._cut_epoch)

    @property
    def updates_per_epoch(self) -> int:
        """Joined batches in an epoch; what is left over and too little for all goes with one."""
        whole, rest = divmod(len(self.utterances), self.settings.batch_size)
        return max(1, whole + (rest >= self.learners))

    @property
    def parts_per_epoch(self) -> int:
        """Parts of all learners in an epoch."""
        return self.updates_per_epoch * self.learners

    @property
    def parts(self) -> int:
        """Parts in the whole training."""
        return self.parts_per_epoch * self.settings.epochs

    @property
    def largest_batch(self) -> tuple[int, int]:
        """The most utterances and frames that a part can have."""
        joined, frames = super().largest_batch
        rest = len(self.utterances) % joined
        return -(-(joined + rest * (rest < self.learners)) // self.learners), frames

    def batches(self) -> list[list[int]]:
        """The utterances of each joined batch of an epoch, by PyTorch's generator."""
        found = super().batches()
        few = next((batch for batch in found if len(batch) < self.learners), None)
        if few is not None:
            found.remove(few)
            found[0] = [*found[0], *few]
        return found

    def epoch_of(self, number: int) -> int:
        """The epoch of a part, from 0."""
        return number // self.parts_per_epoch

    def part(self, number: int) -> Part:
        """What is in a part."""
        chosen, joined = self._cut(self.epoch_of(number))[number % self.parts_per_epoch]
        return Part(number, chosen, joined)

    def drawn(self, number: int) -> Draws:
        """The generator of a part: of its augmentation and its dropout."""
        return Draws(self.seed, 0, "", f"{PURPOSE}, part {number}")

    def minibatch(self, part: Part) -> Update:
        """A part as a minibatch, while its generator is taken up."""
        return self.update(part.chosen, part.number // self.learners)

    def rate(self, done: float) -> float:
        """The learning rate after the share `done` of all updates: with `scale` by its recipe."""
        training, base = self.training, self.training.learning_rate
        if training.scale == 1:
            return learning_rate(training, done)
        scaled = training.model_copy(update={"learning_rate": base * training.scale})
        if done < training.warmup:
            return base + (scaled.learning_rate - base) * done / training.warmup
        return learning_rate(scaled, done)

    def _cut_epoch(self, epoch: int) -> list[tuple[list[int], int]]:
        with self.draws(epoch).taken_up():
            batches = self.batches()
        every = range(self.learners)
        return [(batch[i :: self.learners], len(batch)) for batch in batches for i in every]
