import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fedspeech import evaluation, features, seeding
from fedspeech.config.model import FeatureSettings
from fedspeech.evaluation import RESAMPLES, count, interval, mean_rate, pooled_rate, resample
from fedspeech.features import Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import size, state
from fedspeech.units import Units

texts = st.lists(st.sampled_from(["a", "b", "ab", "نعم", "it's"]), max_size=7).map(" ".join)
pairs = st.lists(st.tuples(texts.filter(bool), texts), min_size=1, max_size=6)


def levenshtein(reference: list[str], hypothesis: list[str]) -> int:
    """The fewest substitutions, deletions and insertions, by the textbook's table."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        above, row = row, [i]
        for j, found in enumerate(hypothesis, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (wanted != found)))
    return row[-1]


@given(pairs)
def test_counts_are_levenshteins_and_their_sums_jiwers(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    found = count(references, hypotheses)
    assert found.errors.dtype == found.words.dtype == np.int64
    assert found.errors.tolist() == [levenshtein(r.split(), h.split()) for r, h in pairs]
    assert found.words.tolist() == [len(r.split()) for r in references]
    total = jiwer.process_words(references, hypotheses)
    assert found.errors.sum() == total.substitutions + total.deletions + total.insertions
    assert found.errors.sum() / found.words.sum() == pytest.approx(
        jiwer.wer(references, hypotheses)
    )


def test_counts_by_hand():
    found = count(["a b c", "a", "a b", "a b c d"], ["a x c", "a b c", "", "b c d e"])
    assert found.errors.tolist() == [1, 2, 2, 2]
    assert found.words.tolist() == [3, 1, 2, 4]


# Rates.


def test_rates_by_hand():
    errors = [np.array([1, 0]), np.array([3]), np.array([0, 0, 0])]
    words = [np.array([4, 4]), np.array([2]), np.array([10, 5, 5])]
    assert mean_rate(errors, words) == pytest.approx(100 * (1 / 8 + 3 / 2 + 0) / 3)
    assert pooled_rate(errors, words) == pytest.approx(100 * 4 / 30)


def test_one_speaker_has_one_rate():
    errors, words = [np.array([1, 2])], [np.array([3, 5])]
    assert mean_rate(errors, words) == pooled_rate(errors, words) == pytest.approx(37.5)


# Intervals.


def drawn(utterances: dict[str, int], cells: int = 2) -> tuple[dict, dict]:
    generator = np.random.default_rng(3)
    words = {s: generator.integers(1, 9, n) for s, n in utterances.items()}
    ease = {s: generator.uniform(0.05, 0.6, (cells, 1)) for s in utterances}
    errors = {s: generator.binomial(words[s], ease[s], (cells, n)) for s, n in utterances.items()}
    return errors, words


def brute_force(errors: dict, words: dict, resamples: int) -> np.ndarray:
    """Speakers with replacement, then each drawn speaker's utterances, one after the other."""
    generator = np.random.default_rng(17)
    names = sorted(errors)
    rows = []
    for _ in range(resamples):
        rates = []
        for _ in names:
            speaker = names[generator.integers(len(names))]
            wrong, spoken = 0, 0
            for _ in range(len(words[speaker])):
                utterance = generator.integers(len(words[speaker]))
                wrong = wrong + errors[speaker][:, utterance]
                spoken += words[speaker][utterance]
            rates.append(wrong / spoken)
        rows.append(100 * np.mean(rates, axis=0))
    return np.array(rows)


@pytest.mark.parametrize(
    "utterances",
    [{"a": 5, "b": 12, "c": 3, "d": 7}, {"a": 9}, {"a": 1, "b": 1, "c": 1}, {"x": 2, "y": 30}],
    ids=["four speakers", "one speaker", "one utterance each", "unequal"],
)
def test_the_distribution_is_that_of_a_nested_loop(utterances):
    errors, words = drawn(utterances)
    found = resample(errors, words, seed=0)
    assert found.shape == (RESAMPLES, 2)
    wanted = brute_force(errors, words, 3000)
    for cell in range(2):
        ours, theirs = found[:, cell], wanted[:, cell]
        spread = theirs.std()
        assert ours.mean() == pytest.approx(theirs.mean(), abs=4 * spread / RESAMPLES**0.5)
        assert ours.std() == pytest.approx(spread, rel=0.1)
        for share in (0.025, 0.25, 0.5, 0.75, 0.975):
            # How many of ours lie below the quantile of theirs: binomial, with its error and ties.
            quantile = np.quantile(theirs, share)
            error = 4.5 * (share * (1 - share) * (1 / RESAMPLES + 1 / 3000)) ** 0.5
            assert (ours < quantile - 1e-9).mean() <= (theirs < quantile - 1e-9).mean() + error
            assert (ours <= quantile + 1e-9).mean() >= (theirs <= quantile + 1e-9).mean() - error


def test_seeds_are_drawn_as_well():
    """Two seeds, without an error and with nothing else: none, one or both draws are the latter."""
    words = {"a": np.array([3, 5, 2]), "b": np.array([4])}
    errors = {s: np.stack([np.stack([0 * w, w]), np.stack([w, 0 * w])]) for s, w in words.items()}
    found = resample(errors, words, seed=0)
    assert_allclose(found.sum(1), 100)  # paired: the other cell has failed with the other seed
    rates, counts = np.unique(found[:, 0].round(9), return_counts=True)
    assert rates.tolist() == [0, 50, 100]
    error = 4.5 * (0.25 / RESAMPLES) ** 0.5
    assert_allclose(counts / RESAMPLES, [0.25, 0.5, 0.25], atol=error)


def test_seeds_that_agree_change_nothing():
    errors, words = drawn({"a": 5, "b": 12, "c": 3})
    thrice = {s: np.stack([each] * 3, axis=1) for s, each in errors.items()}
    assert_allclose(resample(thrice, words, seed=0), resample(errors, words, seed=0), rtol=1e-12)


def test_cells_are_paired():
    errors, words = drawn({"a": 5, "b": 12, "c": 3}, cells=1)
    errors = {s: np.concatenate([e, e, np.ones_like(e), e]) for s, e in errors.items()}
    found = resample(errors, words, seed=0)
    assert np.array_equal(found[:, 0], found[:, 1]) and np.array_equal(found[:, 0], found[:, 3])
    assert interval(found[:, 0] - found[:, 1]) == (0.0, 0.0)
    assert (found[:, 0] != found[:, 2]).any()


def test_a_cell_that_is_worse_by_a_fixed_rate_differs_by_it_in_every_resample():
    words = {"a": np.full(6, 4), "b": np.full(3, 2)}
    first = {s: np.arange(len(w)) % 2 for s, w in words.items()}
    errors = {s: np.stack([e, e + words[s] // 2]) for s, e in first.items()}
    found = resample(errors, words, seed=0)
    assert_allclose(found[:, 1] - found[:, 0], 50.0)


def test_one_utterance_of_one_speaker_leaves_nothing_to_draw():
    found = resample({"a": np.array([[1], [4]])}, {"a": np.array([4])}, seed=0)
    assert np.array_equal(np.unique(found, axis=0), [[25.0, 100.0]])


def test_intervals_follow_from_the_seed_and_not_from_the_order_of_speakers():
    errors, words = drawn({"a": 5, "b": 12, "c": 3})
    found = resample(errors, words, seed=0)
    backwards = resample(dict(reversed(errors.items())), dict(reversed(words.items())), seed=0)
    assert np.array_equal(found, backwards)
    assert not np.array_equal(found, resample(errors, words, seed=1))


def test_the_interval_holds_95_of_100():
    assert interval(np.arange(1001.0)) == (25.0, 975.0)


# Transcribing.


class Ear(torch.nn.Module):
    """Hears unit 1 as often as there are frames, in runs that blanks part; notes its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def forward(self, x, lengths):
        self.batches.append(lengths.tolist())
        logits = torch.zeros(*x.shape[:2], 2)
        logits[:, ::2, 1], logits[:, 1::2, 0] = 1, 1
        return logits, lengths


def test_texts_come_in_the_given_order_whatever_the_batches():
    lengths = [(7 * i) % 41 + 1 for i in range(70)]
    norm = features.Normalization(torch.zeros(4), torch.ones(4))
    some = [
        Utterance(f"u{i}", "s", "a " * i, {1.0: torch.zeros(n, 4)}, norm)
        for i, n in enumerate(lengths)
    ]
    ear, settings = Ear(), FeatureSettings(kind="log-mel", dimension=4)
    units = Units("words", ["<blank>", "a"])
    heard = evaluation.transcribe(ear, some, settings, units)
    assert [len(text.split()) for text in heard] == [-(-n // 2) for n in lengths]
    assert [n for batch in ear.batches for n in batch] == sorted(lengths)
    assert max(map(len, ear.batches)) == evaluation.BATCH and not ear.training
    counts = evaluation.word_errors(ear, some[1:], settings, units)
    assert counts.words.tolist() == list(range(1, 70))
    wanted = [abs(-(-n // 2) - i) for i, n in list(enumerate(lengths))[1:]]
    assert counts.errors.tolist() == wanted


def test_many_models_hear_as_each_does_alone(monkeypatch):
    settings, units = FeatureSettings(), Units("words", ["<blank>", *"abcdef"])
    description = ModelDescription("tdnn-tiny", settings, units)
    norm = features.Normalization(torch.zeros(40), torch.ones(40))
    with seeding.scoped(0, 0, "", "speech"):
        some = [
            Utterance(f"u{n}", "s", "a b c", {1.0: 4 * torch.randn(n, 40)}, norm)
            for n in (90, 31, 7, *range(40, 80))
        ]
        models = [state(description.empty()) for _ in range(3)]
    alone = [description.module(model) for model in models]
    heard = [evaluation.transcribe(each, some, settings, units) for each in alone]
    assert len({" ".join(texts) for texts in heard}) == 3 and all(map(any, heard))
    counts = evaluation.word_errors_of(iter(models), description, some)
    for found, each in zip(counts, alone, strict=True):
        expected = evaluation.word_errors(each, some, settings, units)
        assert found.errors.tolist() == expected.errors.tolist()
    batches = evaluation._batches(some, settings)
    together = evaluation._transcribe_stacked(models, description.stack(), batches, units)
    assert together == heard
    # As on a GPU, with room for two models at a time.
    stacked = []
    real = evaluation._transcribe_stacked
    monkeypatch.setattr(evaluation, "_stack", lambda described: described.stack())
    monkeypatch.setattr(evaluation, "STACK_BYTES", 2 * size(models[0]) + 1)
    monkeypatch.setattr(
        evaluation,
        "_transcribe_stacked",
        lambda some, *more: [stacked.append(len(some)), real(some, *more)][1],
    )
    again = evaluation.word_errors_of(iter(models), description, some)
    assert stacked == [2, 1]
    assert [c.errors.tolist() for c in again] == [c.errors.tolist() for c in counts]
