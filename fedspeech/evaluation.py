"""Word error rates: counts by jiwer, intervals by resampling, and paired differences.

Intervals follow the two levels of the data: speakers are drawn with replacement, then the
utterances of each drawn speaker (Bisani & Ney 2004 resample utterances of one test set).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import torch

from fedspeech import decoding, features, seeding
from fedspeech.accelerator import place
from fedspeech.config.model import FeatureSettings
from fedspeech.decoding import greedy
from fedspeech.features import Batch, Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.models.stacked_tdnn import StackedTDNN
from fedspeech.tensors import Tensors, size
from fedspeech.units import Units

BATCH = 32
STACK, STACK_BYTES = 32, 2**30
"""The most models that are decoded together on a GPU, and their most bytes."""
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
    beam: int = 1,
) -> list[str]:
    """What the model hears in each utterance, in the given order; a beam of 1 is greedy search."""
    return _transcribe(model.to(place()), _batches(utterances, settings), units, beam)


def _batches(
    utterances: Sequence[Utterance], settings: FeatureSettings
) -> list[tuple[list[int], Batch]]:
    """Utterances of similar length with their features, on the device of the models."""
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].log_mel[1.0]))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [
        (part, features.batch([utterances[i] for i in part], settings).to(place()))
        for part in parts
    ]


@torch.inference_mode()
def _transcribe(
    model: torch.nn.Module,
    batches: Sequence[tuple[list[int], Batch]],
    units: Units,
    beam: int = 1,
) -> list[str]:
    model.eval()
    texts: dict[int, str] = {}
    for chosen, batch in batches:
        output, lengths = model(batch.features, batch.lengths)
        texts.update(zip(chosen, decoding.decode(model, output, lengths, units, beam), strict=True))
    return [texts[i] for i in range(len(texts))]


@torch.inference_mode()
def _transcribe_stacked(
    models: Sequence[Tensors],
    stack: StackedTDNN,
    batches: Sequence[tuple[list[int], Batch]],
    units: Units,
) -> list[list[str]]:
    """What each of some models hears; all of them in one pass over the utterances."""
    tensors = {name: torch.stack([m[name] for m in models]).to(place()) for name in models[0]}
    texts: list[dict[int, str]] = [{} for _ in models]
    for chosen, batch in batches:
        logits, lengths = stack(tensors, batch.features[None], batch.lengths[None])
        for own, each in zip(texts, logits, strict=True):
            own.update(zip(chosen, greedy.decode(each, lengths[0], units), strict=True))
    return [[own[i] for i in range(len(own))] for own in texts]


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
    beam: int = 1,
) -> Counts:
    """Transcribe and count."""
    texts = transcribe(model, utterances, settings, units, beam)
    return count([utterance.text for utterance in utterances], texts)


def by_speaker(utterances: Sequence[Utterance], counts: Counts) -> dict[str, Counts]:
    """The counts of each speaker's utterances, in their order."""
    speakers = np.array([utterance.speaker for utterance in utterances])
    return {
        str(speaker): Counts(counts.errors[speakers == speaker], counts.words[speakers == speaker])
        for speaker in np.unique(speakers)
    }


def word_errors_of(
    models: Iterable[Tensors], description: ModelDescription, utterances: Sequence[Utterance]
) -> list[Counts]:
    """The same utterances through many models of one shape; features are computed once.

    On a GPU some TDNNs are decoded as a stack; on a processor one is after the other, which is
    faster there, and transducers everywhere.
    """
    references = [utterance.text for utterance in utterances]
    batches = _batches(utterances, description.features)
    stack = _stack(description)
    waiting, counts = iter(models), []
    for model in waiting:
        if stack:
            together = max(1, min(STACK, STACK_BYTES // size(model)))
            some = [model, *itertools.islice(waiting, together - 1)]
            heard = _transcribe_stacked(some, stack, batches, description.units)
        else:
            module = description.module(model).to(place())
            heard = [_transcribe(module, batches, description.units)]
        counts += [count(references, texts) for texts in heard]
    return counts


def _stack(description: ModelDescription) -> StackedTDNN | None:
    """What decodes many models in one pass, where that is faster; each transducer spells alone."""
    stack = description.stack() if place().type == "cuda" else None
    return stack if isinstance(stack, StackedTDNN) else None


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
    cells see the same draws, so that differences between columns are paired. Of cells that were
    trained with several seeds, (cells, seeds, utterances), the seeds are resampled as well.
    """
    speakers = sorted(errors)
    generator = seeding.generator(seed, 0, "", "intervals")
    trained = _seeds_of(errors[speakers[0]], seed)
    drawn = generator.integers(len(speakers), size=(RESAMPLES, len(speakers)))
    total = np.zeros((RESAMPLES, len(errors[speakers[0]])))
    for index, speaker in enumerate(speakers):
        rows = np.repeat(np.arange(RESAMPLES), (drawn == index).sum(1))
        length = len(words[speaker])
        times = generator.multinomial(length, np.full(length, 1 / length), size=len(rows))
        by_seed = np.moveaxis(errors[speaker].reshape(total.shape[1], -1, length), 1, 0)
        wrong = sum(
            share[rows, None] * (times @ each.T)
            for share, each in zip(trained.T, by_seed, strict=True)
        )
        np.add.at(total, rows, wrong / np.maximum(times @ words[speaker], 1)[:, None])
    return 100 * total / len(speakers)


def _seeds_of(errors: np.ndarray, seed: int) -> np.ndarray:
    """In what shares the seeds are drawn, float64 (RESAMPLES, seeds)."""
    count = errors.shape[1] if errors.ndim == 3 else 1
    generator = seeding.generator(seed, 0, "", "intervals, seeds")
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of some resampled values."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
