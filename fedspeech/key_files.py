"""Ed25519 keys in PEM files, as OpenSSL writes and reads them."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedspeech.errors import SignatureError
from fedspeech.tensors import write_whole


def make_key(path: Path) -> Ed25519PrivateKey:
    """Draw a key and write it as PEM (PKCS #8) to `path`, for its owner alone, and `path`.pub.

    Raises SignatureError where there is a key already, DiskError where it cannot be written.
    """
    public_path = public_file(path)
    for each in (path, public_path):
        if each.exists():
            raise SignatureError(f"{each}: there is a key already")
    key = Ed25519PrivateKey.generate()  # by the system: what follows from a seed is no secret
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_whole(path, partial(_write_private, private))
    write_whole(public_path, lambda part: part.write_bytes(shown))
    return key


def public_file(path: Path) -> Path:
    """Where the public key of the key in a file lies."""
    return path.with_name(f"{path.name}.pub")


def _write_private(content: bytes, path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def read_private(path: Path) -> Ed25519PrivateKey:
    """A key from a PEM file. Raises SignatureError where it is none."""
    key = _read(path, lambda data: serialization.load_pem_private_key(data, None))
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise SignatureError(f"{path}: expected an Ed25519 key, found {type(key).__name__}")


def read_public(path: Path) -> Ed25519PublicKey:
    """A public key from a PEM file. Raises SignatureError where it is none."""
    key = _read(path, serialization.load_pem_public_key)
    if isinstance(key, Ed25519PublicKey):
        return key
    raise SignatureError(f"{path}: expected an Ed25519 public key, found {type(key).__name__}")


def read_any(path: Path) -> Ed25519PrivateKey | Ed25519PublicKey:
    """A private or a public key. Raises SignatureError where it is neither."""
    try:
        return read_public(path)
    except SignatureError:
        return read_private(path)


def _read(path: Path, load: Callable[[bytes], object]) -> object:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise SignatureError(f"{path}: not a readable key: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SignatureError(f"{path}: not such a key in PEM, without a password") from None
