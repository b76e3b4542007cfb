"""What of a comparison is simulated: the seconds of an epoch, for its rows and for many learners.

Each simulation is fed with the batches that one learner was measured with (`computing`). None of
the numbers here is a measurement, and all are kept under the name `simulated`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedspeech import machine
from fedspeech.config.comparison import LinkSettings, SimulatedSettings
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.training.parallel.comparison import way
from fedspeech.training.parallel.simulated import Case, Link, Network, predict

FLOAT_BYTES = 4
EPOCHS = 3
"""That are simulated, of which the mean is told."""
Measured = Mapping[int, Sequence[float]]
"""Seconds of batches, by the utterances in one."""


def table(
    settings: DataParallelConfig,
    rows: Mapping[str, DataParallelConfig],
    measured: Measured,
    utterances: int,
    parameters: int,
) -> dict[str, Any]:
    """All that is simulated, as JSON.

    `rows` has the seconds of an epoch for each row as it was measured, on this machine's
    processors; `curves` those of many learners with batches as large as one learner's.
    """
    assert settings.comparison is not None
    about, size = settings.comparison.simulated, FLOAT_BYTES * parameters
    own = settings.training.batch_size
    return {
        "processors": machine.cores(),
        "batch_size": own,
        "network": about.network.model_dump(),
        "here": about.here.model_dump(),
        "bytes": size,
        "rows": {
            name: round(_seconds(_of_row(row, measured, utterances, size, about)), 4)
            for name, row in rows.items()
        },
        "curves": [
            {
                "way": each,
                "learners": learners,
                "seconds": round(
                    _seconds(_of_many(each, learners, settings, measured[own], utterances, size)), 4
                ),
            }
            for each in settings.comparison.ways
            for learners in about.learners
        ],
    }


def _seconds(case: Case) -> float:
    return predict(case).seconds


def _of_row(
    row: DataParallelConfig,
    measured: Measured,
    utterances: int,
    size: int,
    about: SimulatedSettings,
) -> Case:
    parallel, own = row.parallel, row.training.batch_size
    held = parallel.processor or 1.0
    return Case(
        *(way(parallel), parallel.learners, [s / held for s in measured[own]]),
        *(max(parallel.learners, round(utterances / own)), size, _network(about.here)),
        slowed=parallel.slowed,
        cores=float("inf") if parallel.processor else machine.cores(),
        node_size=parallel.node_size,
        block=parallel.block,
        epochs=EPOCHS,
        seed=row.seed,
    )


def _of_many(
    each: str,
    learners: int,
    settings: DataParallelConfig,
    seconds: Sequence[float],
    utterances: int,
    size: int,
) -> Case:
    assert settings.comparison is not None
    batches = max(learners, round(utterances / settings.training.batch_size))
    network = _network(settings.comparison.simulated.network)
    return Case(
        *(each, learners, seconds, batches, size, network),
        node_size=min(learners, settings.parallel.node_size),
        block=settings.parallel.block,
        epochs=EPOCHS,
        seed=settings.seed,
    )


def _network(link: LinkSettings) -> Network:
    return Network(Link(link.bandwidth, link.latency))
