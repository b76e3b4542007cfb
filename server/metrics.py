"""TensorBoard events as the run goes."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedspeech.training.generic import Epoch
from strategies.outcome import Outcome


class Metrics:
    """Scalars of G's training, of every fine-tuning, and of the comparison."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def epoch(self, epoch: Epoch) -> None:
        """One epoch of G."""
        self._writer.add_scalar("generic/loss", epoch.loss, epoch.number)
        self._writer.add_scalar("generic/development_wer", epoch.word_error_rate, epoch.number)
        self._writer.flush()

    def fine_tuning(self, speaker: str, round: int, losses: Sequence[float]) -> None:
        """The losses of one speaker's epochs in a round; rounds follow one another."""
        first = (round - 1) * len(losses)
        for number, loss in enumerate(losses, first):
            self._writer.add_scalar(f"personal/loss/{speaker}", loss, number)
        self._writer.flush()

    def outcome(self, outcome: Outcome) -> None:
        """WER by alpha (in percent, as steps) of each base."""
        for (base, alpha), errors in sorted(outcome.errors.items()):
            wrong = sum(int(errors[s].sum()) for s in outcome.speakers)
            words = sum(int(outcome.words[s].sum()) for s in outcome.speakers)
            self._writer.add_scalar(f"wer_by_alpha/{base}", 100 * wrong / words, round(100 * alpha))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
