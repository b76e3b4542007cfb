"""What of a comparison is simulated: the seconds of an epoch, for its rows and for many learners.

Each simulation is fed with what learners that know nothing of each other were measured with
(`computing`). None of the numbers here is a measurement, and all are kept under the name
`simulated`.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch

from fedspeech import machine, models
from fedspeech.config.comparison import SimulatedSettings
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.training.parallel import METHODS
from fedspeech.training.parallel.comparison import way
from fedspeech.training.parallel.computing import Measured, places, statistics_of
from fedspeech.training.parallel.loopback import FLOAT_BYTES
from fedspeech.training.parallel.simulated import Case, Link, Network, predict

ALIKE = {name for name, method in METHODS.items() if method.alike}
"""Whose learners have one checkpoint for all of them."""
EPOCHS = 3
"""That are simulated at least, of which the mean is told."""


class Predictions:
    """Of a comparison, whose learners learn `utterances` in an epoch."""

    def __init__(
        self,
        settings: DataParallelConfig,
        measured: Measured,
        utterances: int,
        model: torch.nn.Module,
    ) -> None:
        self._settings = settings
        self._measured, self._utterances = measured, utterances
        self._places = places(settings)
        self._bytes = FLOAT_BYTES * models.parameters(model)
        self._statistics = statistics_of(model)

    def table(self, rows: Mapping[str, DataParallelConfig]) -> dict[str, Any]:
        """All that is simulated, as JSON.

        `rows` has the seconds of an epoch for each row as it was measured, on this machine's
        processors; `curves` those of many learners with batches as large as one learner's.
        """
        size, about = self._settings.parallel.node_size, self._settings.comparison
        assert about is not None
        simulated = about.simulated
        network = _network(simulated, size)
        many = [
            (name, count)
            for name, count in itertools.product(about.ways, simulated.learners)
            if name != "hierarchical" or count < size or count % size == 0  # nodes are whole
        ]
        return {
            "processors": machine.cores(),
            "batch_size": self._settings.training.batch_size,
            "bytes": self._bytes,
            "network": simulated.network.model_dump(),
            "node": simulated.node and {**simulated.node.model_dump(), "size": size},
            "here": self._measured.here._asdict(),
            "rows": {name: _seconds(self.of_row(row)) for name, row in rows.items()},
            "curves": [
                {"way": each, "learners": n, "seconds": _seconds(self.of_many(each, n, network))}
                for each, n in many
            ],
        }

    def of_row(self, row: DataParallelConfig) -> Case:
        """As a row is measured. Learners that are held to a share have it for themselves."""
        parallel, size = row.parallel, row.training.batch_size
        # The share is of one processor, and a learner computes on as many as it has threads.
        longer = row.engine.cpus_per_worker / parallel.processor if parallel.processor else 1.0
        here = Network(self._measured.here)
        case = self._case(way(parallel), parallel.learners, size, here)
        return dataclasses.replace(
            case,
            seconds=[longer * seconds for seconds in case.seconds],
            slowed=parallel.slowed,
            together=() if parallel.processor else self._measured.together(size, self._places),
        )

    def of_many(self, name: str, learners: int, network: Network) -> Case:
        """Learners with batches as large as one learner's, and a processor each."""
        return self._case(name, learners, self._settings.training.batch_size, network)

    def _case(self, name: str, learners: int, batch_size: int, network: Network) -> Case:
        parallel, batches = self._settings.parallel, self._measured.alone(batch_size)
        return Case(
            method=name,
            learners=learners,
            seconds=[batch.seconds for batch in batches],
            frames=[batch.frames for batch in batches],
            batches=self._utterances / batch_size,
            size=self._bytes,
            network=network,
            statistics=self._statistics,
            checkpoint=self._measured.checkpoint,
            one_writes=name in ALIKE,
            step=self._measured.step,
            node_size=min(learners, parallel.node_size),
            block=parallel.block,
            epochs=EPOCHS,
            seed=self._settings.seed,
        )


def _network(settings: SimulatedSettings, node_size: int) -> Network:
    between = Link(settings.network.bandwidth, settings.network.latency)
    if settings.node is None:
        return Network(between)
    return Network(Link(settings.node.bandwidth, settings.node.latency), between, node_size)


def _seconds(case: Case) -> float:
    return round(predict(case).seconds, 4)
