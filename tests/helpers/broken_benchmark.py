"""A benchmark that gives one row and then dies of what `FULL` says; `python -m` cannot name it."""

import os
import time

from experiments.benchmarks.figure import Panel

PANELS = (Panel("half", "x", "y", ("name",)),)
LIMIT = 120.0
FULL, QUICK = "raise", "die"


def rows(setting, plan):
    yield {"table": "half", "name": str(setting.seed), "x": 1, "y": 2.0}
    if plan == "raise":
        raise RuntimeError("half of it is missing")
    if plan == "die":
        os._exit(3)
    time.sleep(60)
