"""Which boxes a SuperLink trusts, told over Flower's control interface, all of them at once.

A process of `flwr supernode register` takes some two seconds for each box.
"""

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from certificates import Mistake
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    import httpx
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.control import ControlHttpClient

UNREGISTERED = "unregistered"
"""Flower's status of a box whose key was revoked: it is kept, and the key never counts again."""

PATIENCE_SECONDS = 30.0
"""For a SuperLink that starts: it listens some ten seconds later."""


def register(superlink: str, ca: Path, keys: Mapping[str, Path]) -> Iterator[str]:
    """Register the public keys of boxes by their names; a line for each as it is done.

    Where nobody listens yet it says so, and waits. Nothing is registered unless all keys can be.
    Raises Mistake.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest

    public = {box: read_public(path) for box, path in keys.items()}
    yield from _until_somebody_listens(superlink)
    with control(superlink, ca) as client:
        known = {bytes(node.public_key): node for node in nodes(client)}
        for box, key in public.items():
            if key in known and known[key].status == UNREGISTERED:
                raise Mistake(f"{keys[box]}: was revoked, and never counts again: make another key")
        for box, key in public.items():
            if key in known:
                yield f"{box}: is registered already"
                continue
            made = client.RegisterNode(RegisterNodeRequest(public_key=key, name=box))
            yield f"{box}: registered, node {made.node_id}"


def _until_somebody_listens(superlink: str) -> Iterator[str]:
    """Wait for up to `PATIENCE_SECONDS`, and say so; what else may be wrong, `control` tells."""
    if _refuses(superlink):
        yield f"{superlink}: no SuperLink listens there yet; waiting for {PATIENCE_SECONDS:g} s"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _refuses(superlink) and time.monotonic() < deadline:
        time.sleep(0.5)


def _refuses(superlink: str) -> bool:
    host, _, port = superlink.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError, OverflowError):  # no such name, no way to it, no address
        return False
    return False


def revoke(superlink: str, ca: Path, box: str) -> Iterator[str]:
    """Let the keys that were registered for a box count no more. Raises Mistake."""
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    with control(superlink, ca) as client:
        known = [node for node in nodes(client) if node.name == box]
        standing = [node for node in known if node.status != UNREGISTERED]
        if not standing:
            raise Mistake(f"{box}: {'was revoked already' if known else 'is not registered'}")
        for node in standing:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            yield f"{box}: revoked, node {node.node_id}"


def read_public(path: Path) -> bytes:
    """A box's public key, an OpenSSH file, as Flower has it: PEM. Raises Mistake."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Mistake(f"{path}: not a public key as OpenSSH writes it") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Mistake(f"{path}: expected an elliptic-curve key (ecdsa)")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def nodes(client: "ControlHttpClient") -> "list[NodeInfo]":
    """All that were ever registered."""
    from flwr.proto.control_pb2 import ListNodesRequest

    return list(client.ListNodes(ListNodesRequest()).nodes_info)


def _refusal(response: "httpx.Response") -> str:
    """In one line, by Flower or by whoever else answers there."""
    from flwr.supercore.error import FlowerError

    if (said := FlowerError.from_json(response.text)) is not None:
        return f"refused: {said.message}"
    if response.status_code == 404:
        return "no SuperLink; the proxy before it is for boxes, give the SuperLink's own address"
    return f"refused: HTTP status {response.status_code}"


@contextmanager
def control(superlink: str, ca: Path) -> "Iterator[ControlHttpClient]":
    """A connection to a SuperLink; what goes wrong with it is told in one line."""
    try:
        import httpx
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    except ImportError:
        raise Mistake("only where fedspeech is installed can boxes be registered") from None
    try:
        trusted = ca.read_bytes()
    except OSError as error:
        raise Mistake(f"{ca}: {error.strerror}") from None
    said = [RuntimeVersionHttpInterceptor("fedspeech")]
    try:
        with ControlHttpClient.from_server_address(superlink, False, trusted, said) as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise Mistake(f"{superlink}: {_refusal(error.response)}") from None
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise Mistake(f"{superlink}: no SuperLink answers there: {error}") from None
        raise Mistake(
            f"{superlink}: its certificate is not one that {ca} vouches for, by that name: {error}"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Mistake(f"{superlink}: no SuperLink answers there: {error}") from None
