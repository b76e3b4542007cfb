"""`results.json` of a data-parallel run: errors of each row over all seeds, with their interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.training.over_seeds import DIGITS, OverSeeds, rate_of
from fedspeech.training.parallel.comparison import CONVERGES, joined, left_apart, named, way
from fedspeech.training.pool import Figures

Rows = Mapping[str, DataParallelConfig]


def assemble(
    settings: DataParallelConfig, rows: Rows, skipped: int, figures: Mapping[str, Figures]
) -> dict[str, Any]:
    """All of results.json, from the figures of each cell by its name; rates in percent.

    In a comparison `minus_one` is a row's rate minus that of one learner, paired, and `converges`
    says whether it is at most twice that and no seed diverged.
    """
    of_seeds = {name: [figures[named(name, s)] for s in row.seeds] for name, row in rows.items()}
    judged = {row.seeds: _judged(rows, row.seeds, figures, settings.seed) for row in rows.values()}
    table = [_row(name, row, of_seeds[name], judged[row.seeds]) for name, row in rows.items()]
    one = next((row for row in table if settings.comparison and row["learners"] == 1), None)
    for row in table:
        beside = judged[rows[row["row"]].seeds]
        compared = one is not None and row is not one
        row["minus_one"] = beside.difference(row["row"], one["row"]) if one and compared else None
        row["converges"] = _converges(row, one) if one else None
    first = table[0]
    return {
        "kind": settings.kind,
        "name": settings.name,
        "seed": settings.seed,
        "seeds": list(settings.seeds),
        "speakers": len(of_seeds[first["row"]][0]["words"]),
        "skipped": skipped,
        "model": settings.model.name,
        "parameters": of_seeds[first["row"]][0]["parameters"],
        "batch_size": first["joined"],
        "table": table,
    }


def _judged(
    rows: Rows, seeds: Sequence[int], figures: Mapping[str, Figures], seed: int
) -> OverSeeds[str]:
    """The rows that have all of these seeds, by these."""
    names = [name for name, row in rows.items() if set(seeds) <= set(row.seeds)]
    return OverSeeds(names, lambda name: [figures[named(name, s)] for s in seeds], seed)


def _row(
    name: str, settings: DataParallelConfig, of_seeds: Sequence[Figures], judged: OverSeeds[str]
) -> dict[str, Any]:
    parallel = settings.parallel
    apart = left_apart(parallel)
    return {
        "row": name,
        "way": way(parallel),
        "learners": parallel.learners,
        "joined": joined(settings),
        "slowed": list(parallel.slowed),
        "processor": parallel.processor,
        "left_apart": None if apart is None else round(apart, DIGITS),
        **judged.rate(name),
        "seeds": [rate_of(each) for each in of_seeds],
        "losses": _mean_losses(of_seeds),
        "diverged": sum("diverged" in each for each in of_seeds),
    }


def _converges(row: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    return not row["diverged"] and bool(row["mean"] <= CONVERGES * one["mean"])


def _mean_losses(of_seeds: Sequence[Figures]) -> list[float]:
    """Of each epoch, over the seeds with which the training did not diverge."""
    losses = [each["losses"] for each in of_seeds if each["losses"]]
    return [round(float(loss), 4) for loss in np.mean(losses, 0)] if losses else []
