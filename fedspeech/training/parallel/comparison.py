"""The rows of a comparison: each way to train data-parallel, and what it is compared with."""

import math
from collections.abc import Iterator
from typing import Any

from fedspeech.config.comparison import ComparisonSettings, Way
from fedspeech.config.data_parallel import DataParallelConfig, ParallelSettings
from fedspeech.training.parallel import mixing

DELAYED: Way = "ad-psgd delay-by-one"
"""The only way by which one learner learns in another way than any other alone."""
CONVERGES = 2.0
"""A row converges whose mean WER is at most so many times that of one learner."""


def way(parallel: ParallelSettings) -> str:
    """The method; of `ad-psgd` with the partner, of `allreduce` with a hook."""
    partner = f" {parallel.partner}" if parallel.method == "ad-psgd" else ""
    hook = f" {parallel.hook}" if parallel.hook != "none" else ""
    return f"{parallel.method}{partner}{hook}"


def of_way(name: str) -> dict[str, str]:
    """What `[parallel]` says of a method that has its partner in its name, but no hook."""
    method, _, partner = name.partition(" ")
    return {"method": method, "partner": partner or "ring"}


def left_apart(parallel: ParallelSettings) -> float | None:
    """The second eigenvalue of a row's mixing matrix: what one averaging leaves, or less, of the
    models' distance from their mean. Where pairs are averaged, as in `ad-psgd` with one partner at
    a time and in `hierarchical`, that of the squared distance, expected.

    None where models are not averaged step by step.
    """
    learners, name = parallel.learners, way(parallel)
    if parallel.method == "allreduce":
        return 0.0
    if parallel.method == "ring" or name == DELAYED:
        matrix = mixing.ring(learners)
    elif parallel.method == "ad-psgd":
        matrix = mixing.pairs(learners, parallel.partner == "random")
    elif parallel.method == "hierarchical":
        size = parallel.node_size
        matrix = mixing.hierarchical(mixing.pairs(learners // size, anyone=False), size)
    else:
        return None
    return mixing.second_eigenvalue(matrix)


def rows(settings: DataParallelConfig) -> dict[str, DataParallelConfig]:
    """The settings of every row, by its name; without a comparison, those that are given.

    One learner comes first: what others are compared with.
    """
    compared = settings.comparison
    if compared is None:
        return {_name(settings.parallel): settings}
    return dict(_compared(settings, compared))


def named(row: str, seed: int) -> str:
    """The name of a row's cell with a seed."""
    return f"{row}.seed-{seed}"


def joined(settings: DataParallelConfig) -> int:
    """Utterances that all learners of a row have together at a time."""
    return settings.training.batch_size * settings.parallel.learners


def _compared(
    settings: DataParallelConfig, compared: ComparisonSettings
) -> Iterator[tuple[str, DataParallelConfig]]:
    numbers, most = sorted(compared.learners), max(compared.learners)
    if numbers[0] == 1:
        yield _row(settings, "allreduce", 1)
        if DELAYED in compared.ways:
            yield _row(settings, DELAYED, 1)
    for name in compared.ways:
        for learners in (n for n in numbers if n > 1):
            yield _row(settings, name, learners)
    for name in compared.closer:
        for factor in compared.larger:
            yield _row(settings, name, most, factor)
        for slowed in (1.0, compared.straggler) if most > 1 else ():
            yield _row(settings, name, most, 1, compared.processor, slowed)


def _row(
    settings: DataParallelConfig,
    name: str,
    learners: int,
    factor: int = 1,
    processor: float | None = None,
    slowed: float = 1.0,
) -> tuple[str, DataParallelConfig]:
    table: dict[str, Any] = settings.model_dump(mode="json", exclude={"comparison"})
    table["parallel"] |= {
        **of_way(name),
        "learners": learners,
        "hook": "none",
        "staleness": None,
        "processor": processor,
        "slowed": [*[1.0] * (learners - 1), slowed] if processor else [],
    }
    if processor:
        table["seeds"] = table["seeds"][:1]
    table["training"]["batch_size"] = factor * settings.training.batch_size // learners
    table["training"]["scale"] = settings.training.scale * math.sqrt(factor)
    found = DataParallelConfig.model_validate(table, context={"comparison"})
    return _name(found.parallel, factor), found


def _name(parallel: ParallelSettings, factor: int = 1) -> str:
    """Of a row's files."""
    larger = [f"batch-{factor}x"] if factor > 1 else []
    capped = ["capped"] if parallel.processor else []
    straggler = ["straggler"] if any(slowed > 1 for slowed in parallel.slowed) else []
    words = way(parallel).replace(" ", "-")
    return ".".join([words, str(parallel.learners), *larger, *capped, *straggler])
