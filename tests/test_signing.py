"""Signed statements: their bytes as SIGNING.md has them, and everything that is refused."""

import re
from pathlib import Path

import pytest
import reference_ed25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedspeech import signing
from fedspeech.errors import SignatureError
from fedspeech.signing import Release, Rotation

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
PUBLIC, ELSE = signing.public(KEY), signing.public(OTHER)
FIRST = Release("the line: é", 3, "a" * 64, "d" * 64, "b" * 64, "2026-01-31T12:00:00Z")
SIGNED = signing.sign_release(FIRST, KEY)
TURN = Rotation(ELSE, "2026-01-31T12:00:00Z")
TURNED = signing.sign_rotation(TURN, KEY)


def refused(data: bytes, key: str = PUBLIC, read=signing.read_release) -> str:
    with pytest.raises(SignatureError) as error:
        read(data, key)
    return str(error.value)


def test_the_reference_verifies_what_rfc_8032_gives_and_nothing_else():
    """Section 7.1, test 3."""
    public = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    signature = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    assert reference_ed25519.verifies(public, b"\xaf\x82", signature)
    assert not reference_ed25519.verifies(public, b"\xaf\x83", signature)


def test_the_bytes_are_those_of_the_description():
    text = (
        "fedspeech release 2\n"
        "line: the line: é\n"
        "sequence: 3\n"
        f"model: {'a' * 64}\n"
        f"description: {'d' * 64}\n"
        f"base: {'b' * 64}\n"
        "time: 2026-01-31T12:00:00Z\n"
        f"key: {PUBLIC}\n"
    ).encode()
    head, last = SIGNED[: len(text)], SIGNED[len(text) :]
    assert head == text
    signature = re.fullmatch(rb"signature: ([0-9a-f]{128})\n", last)[1]
    public = bytes.fromhex(PUBLIC)
    assert reference_ed25519.verifies(public, text, bytes.fromhex(signature.decode()))
    turn = f"fedspeech key 1\nnew: {ELSE}\ntime: 2026-01-31T12:00:00Z\nkey: {PUBLIC}\n".encode()
    assert TURNED.startswith(turn)
    signature = bytes.fromhex(TURNED[len(turn) + len("signature: ") : -1].decode())
    assert reference_ed25519.verifies(public, turn, signature)


def test_the_description_shows_the_fields_in_their_order():
    shown = Path(signing.__file__).with_name("SIGNING.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", shown, re.MULTILINE)
    for block, signed in zip(blocks, (SIGNED, TURNED), strict=True):
        names = [line.split(":")[0].strip() for line in block.splitlines()]
        assert names == [line.split(":")[0] for line in signed.decode().splitlines()]


def test_what_is_signed_is_read_again():
    assert signing.read_release(SIGNED, PUBLIC) == FIRST
    assert signing.read_rotation(TURNED, PUBLIC) == TURN
    assert signing.signer(SIGNED) == signing.signer(TURNED) == PUBLIC
    assert signing.signer(b"") is None
    begin = FIRST._replace(base=signing.NO_BASE, sequence=10**18 - 1)
    assert signing.read_release(signing.sign_release(begin, KEY), PUBLIC) == begin


def test_no_byte_can_be_changed_left_out_or_added():
    for place in range(len(SIGNED)):
        for changed in (
            SIGNED[:place] + bytes([SIGNED[place] ^ 1]) + SIGNED[place + 1 :],
            SIGNED[:place] + SIGNED[place + 1 :],
            SIGNED[:place] + b"0" + SIGNED[place:],
        ):
            refused(changed)
    refused(SIGNED + b"\n")
    refused(SIGNED.replace(b"\n", b"\r\n"))
    lines = SIGNED.splitlines(keepends=True)
    refused(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    refused(b"".join([*lines[:2], *lines[1:]]))


def test_each_refusal_says_why():
    assert refused(b"") == "not signed"
    assert refused(TURNED) == "expected a statement that begins with 'fedspeech release 2'"
    assert refused(SIGNED, read=signing.read_rotation).startswith("expected a statement that beg")
    assert refused(SIGNED[:-2] + b"\n") == "the signed statement is damaged"
    assert refused(SIGNED, ELSE) == f"signed by the key {PUBLIC[:12]}, expected {ELSE[:12]}"
    forged = SIGNED.replace(PUBLIC.encode(), ELSE.encode())
    assert refused(forged, ELSE) == f"the signature is not that of the key {ELSE[:12]}"
    later = SIGNED.replace(b"sequence: 3", b"sequence: 4")
    assert refused(later) == f"the signature is not that of the key {PUBLIC[:12]}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"line": ""}, "line: expected a name that can be printed, found ''"),
        ({"line": "a\nkey: b"}, "line: expected a name"),
        ({"line": "a\x1b[2J"}, "line: expected a name"),
        ({"sequence": 0}, "sequence: expected a number from 1, found '0'"),
        ({"sequence": 10**18}, "sequence: expected a number from 1"),
        ({"model": "A" * 64}, "model: expected 64 hexadecimal digits"),
        ({"base": ""}, "base: expected 64 hexadecimal digits or 'none', found ''"),
        ({"time": "2026-01-31 12:00:00"}, "time: expected a time such as"),
    ],
)
def test_what_cannot_be_said_is_not_signed(changes, told):
    with pytest.raises(SignatureError, match=re.escape(told)):
        signing.sign_release(FIRST._replace(**changes), KEY)
