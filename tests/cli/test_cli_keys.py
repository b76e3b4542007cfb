"""`fedspeech keys`: files that OpenSSL reads as well, and what a device trusts."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedspeech import signing
from fedspeech.device.trust import Trust


def test_a_key_is_made_for_its_owner_alone(fedspeech, tmp_path):
    key, public = tmp_path / "release.key", tmp_path / "release.key.pub"
    status, out, err = fedspeech("keys", "make", key)
    assert (status, err) == (0, "")
    made = serialization.load_pem_private_key(key.read_bytes(), None)
    name = made.public_key().public_bytes_raw().hex()
    assert out.splitlines()[-1] == name
    assert serialization.load_pem_public_key(public.read_bytes()) == made.public_key()
    assert key.stat().st_mode & 0o777 == 0o600
    for file in (key, public):
        assert fedspeech("keys", "show", file) == (0, f"{name}\n", "")
    before = key.read_bytes()
    for gone in (None, key):
        if gone:
            gone.rename(tmp_path / "elsewhere")
        status, _, err = fedspeech("keys", "make", key)
        assert status == 2 and err.endswith(": there is a key already\n")
    assert (tmp_path / "elsewhere").read_bytes() == before and not key.exists()


def test_a_device_pins_a_key_and_follows_its_successor(fedspeech, tmp_path):
    old, new, device = tmp_path / "old", tmp_path / "new", tmp_path / "device"
    fedspeech("keys", "make", old)
    name = fedspeech("keys", "show", old)[1].strip()
    status, out, _ = fedspeech("keys", "pin", device, tmp_path / "old.pub")
    assert (status, out) == (0, f"{device}: pinned {name}\n")
    status, out, _ = fedspeech("keys", "rotate", old, new)
    assert status == 0
    after = fedspeech("keys", "show", tmp_path / "new.pub")[1].strip()
    assert out.splitlines()[-1] == after != name
    signed = (tmp_path / "new.rotation").read_bytes()
    assert signing.read_rotation(signed, name).new == after
    assert Trust(device).follow([signed]) == after
    status, _, err = fedspeech("keys", "pin", device, tmp_path / "old.pub")
    assert status == 2 and f"the key {after[:12]} is pinned already" in err


@pytest.mark.parametrize("content", [None, b"", b"no key", "ec"])
def test_what_is_no_key_is_one_message(fedspeech, tmp_path, content):
    path = tmp_path / "key"
    if content == "ec":
        content = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    if content is not None:
        path.write_bytes(content)
    for command in (("show", path), ("pin", tmp_path, path), ("rotate", path, tmp_path / "new")):
        status, out, err = fedspeech("keys", *command)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"fedspeech: {path}: ")
    assert not (tmp_path / "new").exists()
