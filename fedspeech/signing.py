"""Signed statements: this model is the n-th release of a line; this key takes over from that one.

`SIGNING.md` gives their bytes. Signatures are Ed25519 (RFC 8032).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedspeech.errors import SignatureError

RELEASE, ROTATION = "fedspeech release 2", "fedspeech key 1"
"""First lines: what a statement is, so that one kind is never taken for another."""
KEY, SIGNATURE = "key", "signature"
HASH, TIME = "[0-9a-f]{64}", "[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z"
NO_BASE = "none"


class Release(NamedTuple):
    """A model is a release. Hashes of models are those of `tensors.sha256`."""

    line: str
    """The name of the line of releases: one printable line of text."""
    sequence: int
    """Its number in the line, from 1; a device never goes back."""
    model: str
    description: str
    """The hash of what the model needs to be used, as `hash_of` has it."""
    base: str
    """The release before it, or "none"."""
    time: str
    """When it was signed, as 2026-01-31T12:00:00Z; nothing depends on it."""


class Rotation(NamedTuple):
    """Another key takes over from the one that signs this."""

    new: str
    """The public key, 64 hexadecimal digits."""
    time: str


DIGITS = (HASH, "64 hexadecimal digits")
FORMS = {
    "line": (r".*\S.*", "a name that can be printed"),
    "sequence": ("[1-9][0-9]{0,17}", "a number from 1"),
    "model": DIGITS,
    "description": DIGITS,
    "base": (f"{HASH}|{NO_BASE}", f"{DIGITS[1]} or {NO_BASE!r}"),
    "new": DIGITS,
    "time": (TIME, "a time such as 2026-01-31T12:00:00Z"),
}
"""What every field looks like, as a pattern and in words."""


def sign_release(release: Release, key: Ed25519PrivateKey) -> bytes:
    """The signed statement. Raises SignatureError where a field has another form."""
    return _sign(RELEASE, release._asdict(), key)


def sign_rotation(rotation: Rotation, key: Ed25519PrivateKey) -> bytes:
    """The signed statement; `key` is the old one. Raises SignatureError for another form."""
    return _sign(ROTATION, rotation._asdict(), key)


def read_release(data: bytes, key: str) -> Release:
    """The statement. Raises SignatureError unless it is whole and signed by the key."""
    fields = _verified(data, RELEASE, Release._fields, key)
    return Release(**{**fields, "sequence": int(fields["sequence"])})  # type: ignore[arg-type]


def read_rotation(data: bytes, key: str) -> Rotation:
    """The statement. Raises SignatureError unless it is whole and signed by the key."""
    return Rotation(**_verified(data, ROTATION, Rotation._fields, key))


def hash_of(description: Mapping[str, Any]) -> str:
    """SHA-256 over a model's description as JSON: keys sorted, no spaces, nothing but ASCII."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def signer(data: bytes) -> str | None:
    """The public key that a statement names; nothing is verified."""
    found = re.search(rf"^{KEY}: ({HASH})$".encode(), data, re.MULTILINE)
    return found[1].decode() if found else None


def public(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key as 64 hexadecimal digits, which name it everywhere."""
    own = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return own.public_bytes_raw().hex()


def _sign(title: str, fields: Mapping[str, object], key: Ed25519PrivateKey) -> bytes:
    for name, value in fields.items():
        _check(name, str(value))
    own = {**fields, KEY: public(key)}
    text = "".join([f"{title}\n", *(f"{name}: {value}\n" for name, value in own.items())]).encode()
    return text + f"{SIGNATURE}: {key.sign(text).hex()}\n".encode()


def _verified(data: bytes, title: str, names: Sequence[str], key: str) -> dict[str, str]:
    """The fields of a statement; nothing in it is believed before its signature is verified."""
    if not data:
        raise SignatureError("not signed")
    if not data.startswith(f"{title}\n".encode()):
        raise SignatureError(f"expected a statement that begins with {title!r}")
    parts = "".join(f"{name}: (?P<{name}>[^\n]*)\n" for name in names)
    text = f"(?P<text>{title}\n{parts}{KEY}: (?P<key>{HASH})\n)"
    form = f"{text}{SIGNATURE}: (?P<signature>[0-9a-f]{{128}})\n"
    found = re.fullmatch(form, data.decode(errors="replace"))
    if found is None or "\ufffd" in found[0]:
        raise SignatureError("the signed statement is damaged")
    if found[KEY] != key:
        raise SignatureError(f"signed by the key {found[KEY][:12]}, expected {key[:12]}")
    try:
        trusted = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        trusted.verify(bytes.fromhex(found[SIGNATURE]), found["text"].encode())
    except InvalidSignature:
        raise SignatureError(f"the signature is not that of the key {key[:12]}") from None
    fields = {name: found[name] for name in names}
    for name, value in fields.items():
        _check(name, value)
    return fields


def _check(name: str, value: str) -> None:
    pattern, words = FORMS[name]
    if not re.fullmatch(pattern, value) or not value.isprintable():
        raise SignatureError(f"{name}: expected {words}, found {value!r}")
