"""TensorBoard events as the run goes."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fedspeech.errors import RunError
from fedspeech.training.generic import Epoch
from strategies.outcome import Outcome

VERSION = "brain.Event:2"
"""Of the format; the first event of a file says it."""


class Metrics:
    """Scalars of G's training, of every fine-tuning, and of the comparison.

    They are written here and not by PyTorch's SummaryWriter: its thread meets a full disk with a
    traceback of its own. Every method raises RunError where the disk does not take them.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise _untaken(folder, error) from None
        self._folder, self._records = folder, RecordWriter(self._file)
        self._write([Event(file_version=VERSION)])

    def epoch(self, epoch: Epoch) -> None:
        """One epoch of G."""
        loss = _scalar("generic/loss", epoch.loss, epoch.number)
        rate = _scalar("generic/development_wer", epoch.word_error_rate, epoch.number)
        self._write([loss, rate])

    def fine_tuning(self, speaker: str, round: int, losses: Sequence[float]) -> None:
        """The losses of one speaker's epochs in a round; rounds follow one another."""
        first, tag = (round - 1) * len(losses), f"personal/loss/{speaker}"
        self._write([_scalar(tag, loss, number) for number, loss in enumerate(losses, first)])

    def outcome(self, outcome: Outcome) -> None:
        """Pooled WER by alpha (in percent, as steps) of each base."""
        events = []
        for (base, alpha), errors in sorted(outcome.errors.items()):
            wrong = sum(int(errors[s].sum()) for s in outcome.speakers)
            words = sum(int(outcome.words[s].sum()) for s in outcome.speakers)
            events.append(_scalar(f"wer_by_alpha/{base}", 100 * wrong / words, round(100 * alpha)))
        self._write(events)

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise _untaken(self._folder, error) from None

    def _write(self, events: Sequence[Event]) -> None:
        try:
            for event in events:
                event.wall_time = time.time()
                self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise _untaken(self._folder, error) from None


def _scalar(tag: str, value: float, step: int) -> Event:
    return Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))


def _untaken(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder}: cannot write TensorBoard events: {error}")
