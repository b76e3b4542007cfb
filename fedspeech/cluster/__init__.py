"""Ray, on which simulated devices answer and learners learn; its import is prepared here."""

import logging
import os
import secrets
import sys

LOG = logging.getLogger(__name__)
# Ray listens on all interfaces: without this process's token nobody else can send it work. Ray
# looks for it once, when it is imported.
_ours: dict[str, str] = {}
if "ray" not in sys.modules:
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    _ours = {name: value for name, value in own.items() if name not in os.environ}
    os.environ.update(_ours)


def forget_token() -> None:
    """Another Ray is going to be joined, which does not know this process's token.

    What the user has set stays. Nothing is forgotten once Ray is imported, which keeps the token
    for ever: a Ray that this process then starts would have none, and its workers could not answer.
    """
    if "ray" not in sys.modules:
        for name in _ours:
            os.environ.pop(name, None)


def prepare(address: str | None) -> None:
    """Settle what Ray looks for at its import; `address` is that of a Ray to join, or None."""
    if address is not None:
        forget_token()
    if not LOG.isEnabledFor(logging.INFO):
        # It prints what raylets report, whatever `ray.init` is told: skip every line.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
