"""Ray itself: started for this run on this machine, or joined where it runs already."""

import logging
import os
import warnings

import ray

from fedspeech.config import EngineSettings
from fedspeech.errors import RunError

OBJECT_STORE_BYTES = 2**30
"""Ray spills to disk what does not fit."""


def connect(engine: EngineSettings) -> bool:
    """Start Ray unless it runs in this process already; whether this did.

    Raises RunError where Ray has less than the workers want.
    """
    ours = not ray.is_initialized()
    if ours:
        _start(engine)
    try:
        _check_what_is_there(engine)
    except RunError:
        leave(ours)
        raise
    return ours


def leave(ours: bool) -> None:
    """End what `connect` started."""
    if ours:
        ray.shutdown()


def _start(engine: EngineSettings) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        ray.init(
            address="local",  # not what somebody else started on this machine
            num_cpus=engine.workers * engine.cpus_per_worker,
            num_gpus=engine.simulated_gpus or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )


def _check_what_is_there(engine: EngineSettings) -> None:
    there = ray.cluster_resources()
    for resource, name, each, hint in (
        ("CPU", "processors", engine.cpus_per_worker, "set"),
        ("GPU", "GPUs", engine.gpus_per_worker, "set engine.simulated_gpus or"),
    ):
        wanted, found = engine.workers * each, there.get(resource, 0)
        if wanted > found:
            raise RunError(
                f"engine: {engine.workers} workers with {each:g} {name} each want {wanted:g} "
                f"{name}, Ray has {found:g}; {hint} fewer workers"
            )
