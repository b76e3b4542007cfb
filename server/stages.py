"""`timing.json`: what differs from run to run."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedspeech.run_folder import RunFolder


class Stages:
    """Seconds of each stage, the peak of memory, how often a worker died, and how often a client
    that raised was asked again.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._stages: list[dict[str, Any]] = []
        self.deaths = self.errors = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block and write what is known by then."""
        started = time.monotonic()
        yield
        self._stages.append({"stage": name, "seconds": round(time.monotonic() - started, 2)})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        content = {
            "stages": self._stages,
            "peak_memory_mib": round(peak),
            "worker_deaths": self.deaths,
            "client_errors": self.errors,
        }
        self._run.write_json("timing.json", content)
