"""The client app with faults for Ray's workers, where a cohort's fine-tuning has faults as well.

It changes what the process fine-tunes cohorts with: name it as an app, do not import it.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from faulty_client import COHORT, app, drawn, signalled_later
from flwr.app import Context, Message

from clients import cohort as shipped

__all__ = ["app"]
_prepare = shipped.prepare


def prepare(cohort: Sequence[tuple[Context, Message | None]]) -> None:
    """Fine-tune a cohort; the first of its speakers that is to meet a fault brings it."""
    speakers = [Path(str(context.node_config["device"])).name for context, _ in cohort]
    gone = any(signalled_later(*drawn(COHORT, speaker)) for speaker in speakers)
    _prepare(cohort)
    if gone:
        time.sleep(60)


shipped.prepare = prepare
