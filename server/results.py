"""`results.json`: the figures of a personalization, and nothing that differs from run to run.

WER in percent; `mean` is the average over speakers, as in the paper, `pooled` all errors over all
words, `low` and `high` the 95 % interval of the mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from fedspeech.config import Config
from fedspeech.evaluation import interval, mean_rate, pooled_rate, resample
from fedspeech.rules import GENERIC
from strategies.outcome import Outcome, at_budget

DIGITS = 6
Cell = tuple[str, float | str]
GENERIC_CELL = (GENERIC, 0.0)
PERSONAL_CELL = (GENERIC, 1.0)
CHOSEN = "chosen"


class Table:
    """Every cell of the comparison, with intervals from the same resampled speakers."""

    def __init__(self, outcome: Outcome, bases: Sequence[str], alphas: Sequence[float], seed: int):
        self.speakers = outcome.speakers
        self.bases, self.alphas = bases, alphas
        self.words = {speaker: outcome.words[speaker] for speaker in self.speakers}
        self.errors = self._cells(outcome)
        self.order = list(self.errors)
        stacked = {
            s: np.stack([self.errors[cell][s] for cell in self.order]) for s in self.speakers
        }
        self._samples = resample(stacked, self.words, seed)

    def _cells(self, outcome: Outcome) -> dict[Cell, dict[str, np.ndarray]]:
        cells: dict[Cell, dict[str, np.ndarray]] = {
            GENERIC_CELL: outcome.errors[GENERIC_CELL],
            PERSONAL_CELL: outcome.errors[PERSONAL_CELL],
        }
        # The devices' own choice with G can be asked for where G is not among the bases.
        for base in dict.fromkeys([*self.bases, GENERIC]):
            by_alpha = {a: outcome.errors[self._source(base, a)] for a in self.alphas}
            cells |= {(base, alpha): by_alpha[alpha] for alpha in self.alphas}
            if base in outcome.chosen:
                cells[base, CHOSEN] = {
                    s: by_alpha[outcome.chosen[base][s]][s] for s in self.speakers
                }
        return cells

    def _source(self, base: str, alpha: float) -> tuple[str, float]:
        """alpha = 1 is P_s whatever the base; it was judged once."""
        return PERSONAL_CELL if alpha == 1.0 else (base, alpha)

    def samples(self, cell: Cell) -> np.ndarray:
        """The resampled means of a cell, in percent."""
        return self._samples[:, self.order.index(cell)]

    def mean(self, cell: Cell) -> float:
        """The mean over speakers, in percent."""
        errors = [self.errors[cell][s] for s in self.speakers]
        return mean_rate(errors, list(self.words.values()))

    def figures(self, cell: Cell) -> dict[str, float]:
        """mean, pooled, low, high."""
        errors = [self.errors[cell][s] for s in self.speakers]
        low, high = interval(self.samples(cell))
        pooled = pooled_rate(errors, list(self.words.values()))
        return _rounded({"mean": self.mean(cell), "pooled": pooled, "low": low, "high": high})

    def difference(self, left: Cell, right: Cell) -> dict[str, float]:
        """left - right, paired."""
        low, high = interval(self.samples(left) - self.samples(right))
        mean = self.mean(left) - self.mean(right)
        return _rounded({"mean": mean, "low": low, "high": high})

    def rate(self, cell: Cell, speaker: str) -> float:
        """One speaker's WER in percent."""
        rate = 100 * self.errors[cell][speaker].sum() / self.words[speaker].sum()
        return round(float(rate), DIGITS)

    def best_alpha(self, base: str) -> float:
        """The alpha with the lowest mean on test_s; of equal ones the larger."""
        return min(self.alphas, key=lambda alpha: (self.mean((base, alpha)), -alpha))


def assemble(
    outcome: Outcome,
    config: Config,
    corpus: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    traffic: Mapping[str, int],
    loss_curves: Mapping[str, Any],
    participation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of results.json out of what was found; `participation` where the settings speak of it."""
    federation = config.federation
    budgeted = [
        at_budget(base, budget)
        for base in federation.bases
        for budget in config.budget.compare
        if base != GENERIC
    ]
    table = Table(outcome, [*federation.bases, *budgeted], federation.alphas, config.seed)
    correlations, pairs = layer_correlations(outcome)
    chosen_base = federation.first_base
    return {
        "kind": config.kind,
        "name": config.name,
        "speakers": len(outcome.speakers),
        "seed": config.seed,
        "corpus": list(corpus),
        "generic": table.figures(GENERIC_CELL),
        "personal": table.figures(PERSONAL_CELL),
        "gain": table.difference(GENERIC_CELL, PERSONAL_CELL),
        "table": [
            {"base": base, "alpha": alpha, **table.figures((base, alpha))}
            for base, alpha in table.order
            if base in federation.bases and (alpha == CHOSEN or alpha in federation.alphas)
        ],
        "differences": _differences(table, federation.bases),
        **_budgets(table, outcome, config),
        "chosen_alpha": _chosen(table, outcome, chosen_base),
        "layer_correlation": correlations,
        "pairs": pairs,
        "dendrogram": _dendrogram(outcome),
        "decodings": {
            base: vars(decodings)
            for base, decodings in outcome.decodings.items()
            if decodings.exhaustive
        },
        "peers": {
            base: {speaker: sorted(weights) for speaker, weights in by_speaker.items()}
            for base, by_speaker in outcome.peers.items()
        },
        "per_speaker": _per_speaker(table, outcome, seconds, chosen_base),
        "failures": [vars(failure) for failure in outcome.failures],
        **({} if participation is None else {"participation": participation}),
        "loss_curves": dict(loss_curves),
        "bytes": dict(traffic),
    }


def layer_correlations(outcome: Outcome) -> tuple[list[dict[str, Any]], int]:
    """Figure 2: Pearson's correlation over pairs (s, s') for each layer, and the pairs' number.

    Between the distance of P_s and P_s' on that layer and the WER of P_s' on s; None where one of
    the two does not vary.
    """
    index = {speaker: i for i, speaker in enumerate(outcome.speakers)}
    pairs = [pair for pair in sorted(outcome.pairs) if set(pair) <= set(index)]
    rates = np.array([outcome.pairs[pair].rate for pair in pairs])
    found = []
    for layer, distances in outcome.distances.items():
        apart = np.array([distances[index[s], index[other]] for s, other in pairs])
        varied = len(pairs) > 2 and rates.std() > 0 and apart.std() > 0
        pearson = round(float(np.corrcoef(apart, rates)[0, 1]), DIGITS) if varied else None
        found.append({"layer": layer, "pearson": pearson})
    return found, len(pairs)


def _budgets(table: Table, outcome: Outcome, config: Config) -> dict[str, Any]:
    """Each base as it was pushed within each budget: the bytes of one push, and the cells.

    The first row of a base is that of `table`; `change` is the paired difference from it. Nothing
    where no budget was set.
    """
    settings = config.budget
    if settings.base is None and settings.speakers is None and not settings.compare:
        return {}
    rows = []
    for base in config.federation.bases:
        for budget in (None, *(settings.compare if base != GENERIC else ())):
            name = at_budget(base, budget)
            alphas = [*table.alphas, *([CHOSEN] if name in outcome.chosen else [])]
            rows.append(
                {
                    "base": base,
                    "budget": budget or settings.base,
                    **_took(outcome, name, table.speakers),
                    "table": [
                        {
                            "alpha": alpha,
                            **table.figures((name, alpha)),
                            "change": table.difference((name, alpha), (base, alpha)),
                        }
                        for alpha in alphas
                    ],
                }
            )
    return {"budgets": rows}


def _took(outcome: Outcome, name: str, speakers: Sequence[str]) -> dict[str, Any]:
    """Bytes of a push, mean and most, the mean share of the change that was lost, and tensors whose
    hashed diff fell back to the additive form."""
    took = [
        by_speaker[s] for (base, _), by_speaker in outcome.pushed.items() if base == name
        for s in speakers
    ]  # fmt: skip
    sizes = [one.bytes for one in took] or [0]
    lost = sum(one.lost for one in took) / max(len(took), 1)
    mean = sum(sizes) / len(sizes)
    additive = sorted({tensor for one in took for tensor in one.additive})
    return {
        **_rounded({"bytes": mean, "lost": lost}),
        "most_bytes": max(sizes),
        "additive": additive,
    }


def _differences(table: Table, bases: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for base in bases:
        for alpha in (table.best_alpha(base), CHOSEN):
            if (base, alpha) not in table.errors:
                continue
            for against, cell in (("personal", PERSONAL_CELL), ("generic", GENERIC_CELL)):
                difference = table.difference((base, alpha), cell)
                rows.append({"base": base, "alpha": alpha, "against": against, **difference})
    return rows


def _chosen(table: Table, outcome: Outcome, base: str) -> dict[str, Any] | None:
    if base not in outcome.chosen:
        return None
    alphas = {speaker: outcome.chosen[base][speaker] for speaker in table.speakers}
    return {"base": base, **table.figures((base, CHOSEN)), "alphas": alphas}


def _dendrogram(outcome: Outcome) -> dict[str, Any] | None:
    """Ward linkage on the first layer, as the rule `dendrogram` sees it."""
    first = next(iter(outcome.distances.values()), None)
    if first is None or len(outcome.speakers) < 2:
        return None
    tree = linkage(squareform(first, checks=False), method="ward")
    rounded = [[round(float(value), DIGITS) for value in row] for row in tree]
    return {"speakers": list(outcome.speakers), "linkage": rounded}


def _per_speaker(
    table: Table, outcome: Outcome, seconds: Mapping[str, float], base: str
) -> list[dict[str, Any]]:
    return [
        {
            "speaker": speaker,
            "generic": table.rate(GENERIC_CELL, speaker),
            "personal": table.rate(PERSONAL_CELL, speaker),
            **({"chosen": table.rate((base, CHOSEN), speaker)} if base in outcome.chosen else {}),
            "words": int(table.words[speaker].sum()),
            "seconds": seconds[speaker],
            "skipped": outcome.skipped[speaker],
        }
        for speaker in table.speakers
    ]


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in figures.items()}
