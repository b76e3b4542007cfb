"""Whether a SuperLink knows a box's key, asked so that nothing comes of it.

A SuperNode is activated when it begins, and then no other with its key can be for a minute. So this
asks to activate it with a heartbeat that nobody may have: Flower 1.41 looks for the key first and
at the heartbeat then, and its two errors tell whether the key is registered.
"""

import json
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedspeech.errors import ConfigError

PATH = "/v1/fleet/activate-node"
BAD_HEARTBEAT, NO_SUCH_KEY = 2003, 2004
"""Flower's FLEET_INVALID_HEARTBEAT_INTERVAL and FLEET_NODE_ACTIVATION_FAILED."""
UNAUTHORIZED = 401
NOBODY_BEHIND = 502, 503, 504
"""What a proxy answers that reaches nobody."""


class Question(NamedTuple):
    """An HTTP request."""

    body: bytes
    headers: dict[str, str]


def read(path: Path) -> ec.EllipticCurvePrivateKey:
    """A box's key as SuperNodes read it. Raises ConfigError where it is none."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not a private key as OpenSSH writes it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: expected an elliptic-curve key (ecdsa)")
    return key


def question(key: ec.EllipticCurvePrivateKey) -> Question:
    """A request signed as Flower's SuperNode signs: the time, and nothing else."""
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    time = datetime.now(UTC).isoformat()
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    headers = {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": time,
        "flwr-signature": b64encode(signature).decode(),
    }
    return Question(_activate_node(public), headers)


def _activate_node(public: bytes) -> bytes:
    """ActivateNodeRequest: field 1, `public_key`; field 2, the heartbeat, is left out: zero."""
    length = len(public)
    assert 128 <= length < 2**14
    return bytes([1 << 3 | 2, length & 127 | 128, length >> 7]) + public


def answer(status: int, body: bytes) -> tuple[str, str]:
    """What a SuperLink's answer means, and what to do."""
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    if code == BAD_HEARTBEAT:
        return "registered", ""
    if code == NO_SUCH_KEY:
        return "not registered, or revoked", "let the operator register its public key"
    if status == UNAUTHORIZED:
        return "the server does not take its signature", "see this box's clock"
    if status in NOBODY_BEHIND:
        found = f"the proxy answers, and no SuperLink behind it (HTTP {status})"
        return found, "wait: the server's SuperLink is down, or starts"
    found = f"no SuperLink answers at {PATH} (HTTP {status})"
    return found, "check that this is the port for boxes"
