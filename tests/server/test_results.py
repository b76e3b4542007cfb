"""Every figure of results.json, recomputed from the outcome in another way."""

import json

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.stats import pearsonr

from fedspeech.aggregation import WordErrors
from fedspeech.config import Config
from fedspeech.evaluation import resample
from server.results import assemble
from strategies.outcome import Decodings, Failure, Outcome

SPEAKERS = ("s1", "s2", "s3", "s4")
GONE = "s9"
BASES, ALPHAS = ("mean", "kbest"), (0.0, 0.3, 1.0)
SECONDS = dict.fromkeys((*SPEAKERS, GONE), 280.0)
LAYERS = ("tdnn.0", "tdnn.1", "flat")


@pytest.fixture
def outcome() -> Outcome:
    """Drawn counts; s9 dropped out halfway and left its traces."""
    draw = np.random.default_rng(5)
    found = Outcome(speakers=SPEAKERS)
    for number, speaker in enumerate((*SPEAKERS, GONE), 3):
        found.words[speaker] = draw.integers(1, 5, 2 * number)
    cells = [("generic", a) for a in (0.0, 0.3, 1.0)]
    cells += [(base, a) for base in BASES for a in ALPHAS if a != 1.0]
    for cell in cells:
        found.errors[cell] = {s: draw.integers(0, 4, len(w)) for s, w in found.words.items()}
    found.chosen = {b: {s: float(draw.choice(ALPHAS)) for s in found.words} for b in BASES}
    for s in found.words:
        for other in found.words:
            if s != other and draw.random() < 0.8:
                found.pairs[s, other] = WordErrors(int(draw.integers(0, 20)), 20)
    for layer in LAYERS[:2]:
        half = np.triu(draw.uniform(1, 2, (4, 4)), 1)
        found.distances[layer] = half + half.T
    found.distances["flat"] = np.ones((4, 4)) - np.eye(4)
    found.peers = {base: {s: {"s1": 0.5, "s3": 0.5} for s in SPEAKERS} for base in BASES}
    found.decodings = {"mean": Decodings(), "kbest": Decodings(30, 200, 3) + Decodings(2, 5, 1)}
    found.skipped = dict.fromkeys(found.words, 2)
    found.failures = [Failure(GONE, 1, "train.install", "no answer")]
    return found


@pytest.fixture
def config() -> Config:
    federation = {"bases": BASES, "alphas": ALPHAS, "chosen_base": "mean"}
    return Config.model_validate({"seed": 3, "federation": federation})


@pytest.fixture
def results(outcome, config) -> dict:
    return assemble(outcome, config, [{"part": "test_s"}], SECONDS, {"down": 1}, {"generic": {}})


def counts(outcome: Outcome, base: str, alpha: float | str) -> dict[str, np.ndarray]:
    """Errors of a cell by speaker, by the words of the design: alpha = 1 is P_s for any base."""
    if alpha == "chosen":
        each = {s: outcome.chosen[base][s] for s in SPEAKERS}
    else:
        each = dict.fromkeys(SPEAKERS, alpha)
    return {s: outcome.errors["generic" if a == 1.0 else base, a][s] for s, a in each.items()}


def mean(outcome: Outcome, errors: dict[str, np.ndarray]) -> float:
    rates = [100 * sum(errors[s]) / sum(outcome.words[s]) for s in SPEAKERS]
    return sum(rates) / len(rates)


def pooled(outcome: Outcome, errors: dict[str, np.ndarray]) -> float:
    wrong = sum(sum(errors[s]) for s in SPEAKERS)
    return 100 * wrong / sum(sum(outcome.words[s]) for s in SPEAKERS)


def resampled(outcome: Outcome, *cells: dict[str, np.ndarray]) -> np.ndarray:
    stacked = {s: np.stack([cell[s] for cell in cells]) for s in SPEAKERS}
    return resample(stacked, {s: outcome.words[s] for s in SPEAKERS}, 3)


def assert_figures(outcome: Outcome, found: dict, errors: dict[str, np.ndarray]) -> None:
    low, high = np.percentile(resampled(outcome, errors), [2.5, 97.5])
    expected = (mean(outcome, errors), pooled(outcome, errors), low, high)
    names = ("mean", "pooled", "low", "high")
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert found["low"] <= found["mean"] <= found["high"]


def test_generic_and_personal(outcome, results):
    assert_figures(outcome, results["generic"], counts(outcome, "generic", 0.0))
    assert_figures(outcome, results["personal"], counts(outcome, "generic", 1.0))


def test_the_table_has_every_base_and_alpha_and_the_devices_choice(outcome, results):
    cells = [(row["base"], row["alpha"]) for row in results["table"]]
    assert cells == [(base, alpha) for base in BASES for alpha in (*ALPHAS, "chosen")]
    for row in results["table"]:
        assert_figures(outcome, row, counts(outcome, row["base"], row["alpha"]))


def test_gain_and_differences_are_paired(outcome, results):
    generic, personal = counts(outcome, "generic", 0.0), counts(outcome, "generic", 1.0)
    rows = [(results["gain"], generic, personal)]
    for row in results["differences"]:
        against = {"personal": personal, "generic": generic}[row["against"]]
        rows.append((row, counts(outcome, row["base"], row["alpha"]), against))
    assert len(rows) == 1 + 2 * 2 * 2
    for row, left, right in rows:
        samples = resampled(outcome, left, right)
        low, high = np.percentile(samples[:, 0] - samples[:, 1], [2.5, 97.5])
        expected = (mean(outcome, left) - mean(outcome, right), low, high)
        assert [row["mean"], row["low"], row["high"]] == pytest.approx(expected, abs=1e-6)


def test_the_best_alpha_is_the_one_with_the_lowest_mean(outcome, results):
    for base in BASES:
        means = {alpha: mean(outcome, counts(outcome, base, alpha)) for alpha in ALPHAS}
        best = [r["alpha"] for r in results["differences"] if r["base"] == base]
        assert set(best) == {min(means, key=means.__getitem__), "chosen"}


def test_of_equally_good_alphas_the_larger_is_the_best(outcome, config):
    same = outcome.errors["generic", 1.0]
    outcome.errors |= {("mean", alpha): same for alpha in (0.0, 0.3)}
    found = assemble(outcome, config, [], SECONDS, {}, {})
    best, *_ = [r["alpha"] for r in found["differences"] if r["base"] == "mean"]
    assert best == 1.0


def test_chosen_alphas(outcome, results):
    assert results["chosen_alpha"]["base"] == "mean"
    assert results["chosen_alpha"]["alphas"] == {s: outcome.chosen["mean"][s] for s in SPEAKERS}
    assert_figures(outcome, results["chosen_alpha"], counts(outcome, "mean", "chosen"))


@pytest.mark.parametrize(("bases", "expected"), [(BASES, "kbest"), (("mean",), "mean")])
def test_the_base_of_the_choice_is_kbest_where_it_is_compared(outcome, bases, expected):
    config = Config.model_validate({"federation": {"bases": bases, "alphas": ALPHAS}})
    found = assemble(outcome, config, [], SECONDS, {}, {})
    assert found["chosen_alpha"]["base"] == expected
    outcome.chosen.clear()
    assert assemble(outcome, config, [], SECONDS, {}, {})["chosen_alpha"] is None


def test_the_choice_with_g_is_reported_where_g_is_not_among_the_bases(outcome):
    outcome.chosen["generic"] = dict(zip(SPEAKERS, (0.3, 0.0, 1.0, 0.3), strict=True))
    federation = {"bases": BASES, "alphas": ALPHAS, "chosen_base": "generic"}
    config = Config.model_validate({"seed": 3, "federation": federation})
    found = assemble(outcome, config, [], SECONDS, {}, {})
    assert found["chosen_alpha"]["alphas"] == outcome.chosen["generic"]
    expected = counts(outcome, "generic", "chosen")
    assert_figures(outcome, found["chosen_alpha"], expected)
    for row in found["per_speaker"]:
        speaker = row["speaker"]
        wrong, words = expected[speaker].sum(), outcome.words[speaker].sum()
        assert row["chosen"] == pytest.approx(100 * wrong / words, abs=1e-6)
    assert {row["base"] for row in found["table"] + found["differences"]} == set(BASES)


def test_layer_correlations_are_pearsons(outcome, results):
    pairs = [pair for pair in outcome.pairs if GONE not in pair]
    assert results["pairs"] == len(pairs) > 5
    rates = [outcome.pairs[pair].errors / outcome.pairs[pair].words for pair in pairs]
    found = {row["layer"]: row["pearson"] for row in results["layer_correlation"]}
    assert list(found) == list(LAYERS)
    for layer in LAYERS[:2]:
        distances = outcome.distances[layer]
        apart = [distances[SPEAKERS.index(s), SPEAKERS.index(other)] for s, other in pairs]
        assert found[layer] == pytest.approx(pearsonr(apart, rates).statistic, abs=1e-6)
    assert found["flat"] is None  # all equally far: no correlation is defined


def test_the_dendrogram_is_wards_on_the_first_layer(outcome, results):
    distances = outcome.distances["tdnn.0"]
    condensed = [distances[i, j] for i in range(4) for j in range(i + 1, 4)]
    assert results["dendrogram"]["speakers"] == list(SPEAKERS)
    assert np.allclose(results["dendrogram"]["linkage"], linkage(condensed, "ward"), atol=1e-6)


def test_each_speaker(outcome, results):
    rows = {row["speaker"]: row for row in results["per_speaker"]}
    assert list(rows) == list(SPEAKERS)
    for speaker, row in rows.items():
        words = sum(outcome.words[speaker])
        for name, cell in (
            ("generic", ("generic", 0.0)),
            ("personal", ("generic", 1.0)),
            ("chosen", ("mean", "chosen")),
        ):
            wrong = sum(counts(outcome, *cell)[speaker])
            assert row[name] == pytest.approx(100 * wrong / words, abs=1e-6)
        assert (row["words"], row["seconds"], row["skipped"]) == (words, 280.0, 2)


def test_who_dropped_out_is_named_and_nowhere_else(results):
    assert results["failures"] == [
        {"speaker": GONE, "round": 1, "message": "train.install", "reason": "no answer"}
    ]
    rest = {name: value for name, value in results.items() if name != "failures"}
    assert GONE not in json.dumps(rest)
    assert results["speakers"] == 4


def test_what_is_passed_on(results):
    assert results["corpus"] == [{"part": "test_s"}]
    assert results["bytes"] == {"down": 1}
    assert results["loss_curves"] == {"generic": {}}
    assert results["peers"] == {base: {s: ["s1", "s3"] for s in SPEAKERS} for base in BASES}
    assert results["decodings"] == {"kbest": {"used": 32, "exhaustive": 205, "cut": 4}}
    assert (results["kind"], results["seed"]) == ("personalization", 3)
