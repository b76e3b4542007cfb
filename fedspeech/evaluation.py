"""Word error rates: counts by jiwer, intervals by resampling, and paired differences.

Intervals follow the two levels of the data: speakers are drawn with replacement, then the
utterances of each drawn speaker (Bisani & Ney 2004 resample utterances of one test set).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import torch

from fedspeech import features, seeding
from fedspeech.accelerator import place
from fedspeech.config import FeatureSettings
from fedspeech.decoding import greedy
from fedspeech.features import Utterance
from fedspeech.units import Units

BATCH = 32
RESAMPLES = 1000


@dataclass(frozen=True)
class Counts:
    """Errors and words of each utterance, int64 of shape (utterances,)."""

    errors: np.ndarray
    words: np.ndarray


def transcribe(
    model: torch.nn.Module,
    utterances: Sequence[Utterance],
    settings: FeatureSettings,
    units: Units,
) -> list[str]:
    """What the model hears in each utterance, greedily decoded, in the given order."""
    model.to(place()).eval()
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].log_mel[1.0]))
    texts = [""] * len(utterances)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = features.batch([utterances[i] for i in chosen], settings).to(place())
            logits, lengths = model(batch.features, batch.lengths)
            for i, text in zip(chosen, greedy.decode(logits, lengths, units), strict=True):
                texts[i] = text
    return texts


def count(references: Sequence[str], hypotheses: Sequence[str]) -> Counts:
    """Substitutions, deletions and insertions of each utterance, and its words of reference."""
    output = jiwer.process_words(list(references), list(hypotheses))
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in output.alignments
    ]
    words = [len(reference) for reference in output.references]
    return Counts(np.array(errors, dtype=np.int64), np.array(words, dtype=np.int64))


def word_errors(
    model: torch.nn.Module,
    utterances: Sequence[Utterance],
    settings: FeatureSettings,
    units: Units,
) -> Counts:
    """Transcribe and count."""
    texts = transcribe(model, utterances, settings, units)
    return count([utterance.text for utterance in utterances], texts)


def mean_rate(errors: Sequence[np.ndarray], words: Sequence[np.ndarray]) -> float:
    """The mean over speakers of each speaker's word error rate, in percent."""
    rates = [e.sum() / w.sum() for e, w in zip(errors, words, strict=True)]
    return float(100 * np.mean(rates))


def pooled_rate(errors: Sequence[np.ndarray], words: Sequence[np.ndarray]) -> float:
    """All errors over all words, in percent."""
    return float(100 * sum(e.sum() for e in errors) / sum(w.sum() for w in words))


def resample(
    errors: Mapping[str, np.ndarray], words: Mapping[str, np.ndarray], seed: int
) -> np.ndarray:
    """Mean rates in percent, float64 (RESAMPLES, cells), of resampled speakers and utterances.

    `errors` gives for each speaker an array (cells, utterances), `words` one (utterances,). All
    cells see the same draws, so that differences between columns are paired.
    """
    speakers = sorted(errors)
    generator = seeding.generator(seed, 0, "", "intervals")
    cells = errors[speakers[0]].shape[0]
    drawn = generator.integers(len(speakers), size=(RESAMPLES, len(speakers)))
    total = np.zeros((RESAMPLES, cells))
    for index, speaker in enumerate(speakers):
        rows = np.repeat(np.arange(RESAMPLES), (drawn == index).sum(1))
        length = len(words[speaker])
        times = generator.multinomial(length, np.full(length, 1 / length), size=len(rows))
        rates = (times @ errors[speaker].T) / np.maximum(times @ words[speaker], 1)[:, None]
        np.add.at(total, rows, rates)
    return 100 * total / len(speakers)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of some resampled values."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
