"""How long a run's stages took, over all the processes that have worked on it."""

import time
from typing import Any

from fedspeech.run_folder import RunFolder, read_json

FILE = "spent.json"
"""In a run's folder."""


class Spent:
    """Seconds of each stage, of all processes that have worked on a run.

    They are written down whenever something is finished: of a process that was killed, what it had
    not finished is missing. Raises RunError where what they have written is damaged.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run, self._since = run, time.monotonic()
        path = run.path / FILE
        self._seconds: dict[str, float] = read_json(path) if path.exists() else {}

    def on(self, stage: str) -> None:
        """What has passed since this was asked last was of this stage."""
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now
        self._run.write_json(FILE, self._seconds)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """As timing.json has them, in the order in which they began."""
        return [{"stage": s, "seconds": round(each, 2)} for s, each in self._seconds.items()]
