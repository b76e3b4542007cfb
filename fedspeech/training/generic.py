"""Training G on the generic part, judged by its development speakers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedspeech import accelerator, evaluation, models, seeding
from fedspeech.config import Config
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import Partition
from fedspeech.errors import CorpusError, RunError
from fedspeech.features import Utterance, prepare
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors, state
from fedspeech.training import checkpoint
from fedspeech.training.course import Course, fitting
from fedspeech.training.loop import Loop
from fedspeech.units import learn

log = logging.getLogger("fedspeech")

PURPOSE = "generic"
TOO_LARGE = (
    "G does not fit the memory of this machine: a smaller generic.batch_size takes less, and so do "
    "shorter utterances"
)


@dataclass(frozen=True)
class Epoch:
    """How one epoch went: mean loss in nats per utterance, WER on the development part in %."""

    number: int
    loss: float
    word_error_rate: float


@dataclass(frozen=True)
class Trained:
    """G, what goes with it, how it came about, and how many trained values it has."""

    model: Tensors
    description: ModelDescription
    epochs: list[Epoch]
    parameters: int


def train(
    partition: Partition,
    config: Config,
    features_folder: Path,
    kept: Path,
    report: Callable[[Epoch], None],
) -> Trained:
    """Train G and keep the epoch with the lowest WER on the development speakers.

    After every epoch a checkpoint is written to `kept`; where there is one, training goes on from
    it and gives the same G as if it had never stopped. Raises RunError where the loss or the model
    is no number any more, or the memory runs out, CorpusError where no utterance can be learned
    from.
    """
    settings = config.generic
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with accelerator.within_memory(TOO_LARGE):
            run = _Run.start(partition, config, features_folder)
            run.resume(kept)
            while not run.finished():
                report(run.next_epoch())
                run.save(kept)
    finally:
        torch.set_num_threads(before)
    return Trained(run.best, run.description, run.epochs, models.parameters(run.loop.model))


class _Run:
    """A training in progress."""

    def __init__(
        self, loop: Loop, description: ModelDescription, development: Sequence[Utterance]
    ) -> None:
        self.loop = loop
        self.description = description
        self.development = development
        self.epochs: list[Epoch] = []
        self.best: Tensors = state(loop.model)

    @staticmethod
    def start(partition: Partition, config: Config, folder: Path) -> "_Run":
        settings = config.generic
        speeds = settings.augmentation.speeds
        speech = prepare(list(partition.generic), config.features, speeds, folder)
        development = prepare(list(partition.development), config.features, (), folder)
        units = learn([text_of(cut) for cut in partition.generic], config.units)
        description = ModelDescription.of(config.model, config.features, units)
        with seeding.scoped(config.seed, 0, "", f"{PURPOSE}, initialization"):
            model = description.empty()
        name = (config.seed, 0, "", PURPOSE)
        course = Course(settings, config.features, units, _taught(speech, description), name)
        return _Run(Loop(model, course), description, development)

    def finished(self) -> bool:
        """All epochs are done, or `patience` of them without a better WER."""
        settings = self.loop.settings
        rates = [epoch.word_error_rate for epoch in self.epochs]
        since_best = len(rates) - 1 - rates.index(min(rates)) if rates else 0
        patience = getattr(settings, "patience", settings.epochs)
        return len(rates) >= settings.epochs or since_best >= patience

    def next_epoch(self) -> Epoch:
        """Train and judge one epoch."""
        loop, description = self.loop, self.description
        number = len(self.epochs)
        loss = loop.epoch(number)
        if loop.has_diverged(loss):
            raise RunError(
                f"training of G diverged in epoch {number + 1} (loss {loss:.3g}); "
                f"generic.learning_rate = {loop.settings.learning_rate:g} may be too large"
            )
        counts = evaluation.word_errors(
            loop.model, self.development, description.features, description.units
        )
        rate = evaluation.pooled_rate([counts.errors], [counts.words])
        if all(rate < epoch.word_error_rate for epoch in self.epochs):
            self.best = state(loop.model)
        self.epochs.append(Epoch(number, loss, rate))
        return self.epochs[-1]

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        epochs = [(e.number, e.loss, e.word_error_rate) for e in self.epochs]
        checkpoint.save(path, self.loop, best=self.best, epochs=epochs)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint where there is one. Raises RunError where it is damaged."""
        if found := checkpoint.load(path, self.loop, "best", "epochs"):
            self.best, epochs = found
            self.epochs = [Epoch(*values) for values in epochs]


def _taught(speech: Sequence[Utterance], description: ModelDescription) -> list[Utterance]:
    taught = fitting(speech, description)
    if not taught:
        raise CorpusError("all utterances for G have too many units for their length")
    if skipped := len(speech) - len(taught):
        log.warning("G skips %d utterances: they have too many units for their length", skipped)
    return taught
