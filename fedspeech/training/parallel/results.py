"""`results.json` of a data-parallel training: its errors over all seeds, with their interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.training.over_seeds import OverSeeds, rate_of
from fedspeech.training.pool import Figures


def assemble(
    settings: DataParallelConfig, skipped: int, figures: Mapping[int, Figures]
) -> dict[str, Any]:
    """All of results.json, from the figures of each seed; rates in percent."""
    return {
        "kind": settings.kind,
        "name": settings.name,
        "seed": settings.seed,
        "seeds": list(settings.seeds),
        "speakers": len(figures[settings.seed]["words"]),
        "skipped": skipped,
        "model": settings.model.name,
        "table": [row(settings, [figures[seed] for seed in settings.seeds])],
    }


def row(settings: DataParallelConfig, of_seeds: Sequence[Figures]) -> dict[str, Any]:
    """One row of the table: a method, with so many learners, over all seeds."""
    parallel = settings.parallel
    judged = OverSeeds(["row"], lambda _: list(of_seeds), settings.seed)
    return {
        "method": parallel.method,
        "variant": variant(settings),
        "learners": parallel.learners,
        "batch_size": settings.training.batch_size,
        "parameters": of_seeds[0]["parameters"],
        **judged.rate("row"),
        "seeds": [rate_of(each) for each in of_seeds],
        "losses": np.round(np.mean([each["losses"] for each in of_seeds], 0), 4).tolist(),
    }


def variant(settings: DataParallelConfig) -> str | None:
    """Which of a method's variants it is, where it has some."""
    parallel = settings.parallel
    if parallel.method == "allreduce":
        return parallel.hook
    return parallel.partner if parallel.method == "ad-psgd" else None
