"""Signed releases: from the server's folder to a device that has pinned the key."""

import hashlib
import itertools
import json

import pytest
import torch

from fedspeech import key_files, signed_line, signing, tensors
from fedspeech.device import trust
from fedspeech.diff.budget import exact
from fedspeech.errors import ModelError, SignatureError
from fedspeech.releases import Releases

ABOUT = {"name": "tdnn", "units": ["é", "b"]}
"""What every release is used with."""


@pytest.fixture
def line(tmp_path):
    """Three releases of a model of ten weights."""
    folder = tmp_path / "asr"
    folder.mkdir()
    models = [{"weight": torch.arange(10.0) + step / 8} for step in range(3)]
    tensors.write(folder / "0000.safetensors", models[0])
    found = Releases(folder)
    held = found.begin(folder / "0000.safetensors")
    for before, after in itertools.pairwise(models):
        data = exact(before, after)
        found.add(held, held := tensors.sha256(after), data)
    for name in found.names:
        found.describe(name, ABOUT)
    return found


@pytest.fixture
def key(tmp_path):
    return key_files.make_key(tmp_path / "release.key")


@pytest.fixture
def device(tmp_path, key):
    trust.Trust(tmp_path / "device").pin(signing.public(key))
    return tmp_path / "device"


def test_each_release_is_signed_once_by_its_number(line, key):
    assert signed_line.sign(line, key) == list(line.names)
    assert signed_line.sign(line, key) == []
    (said,) = signed_line.statements(line, line.names[1])
    release = signing.read_release(said.encode(), signing.public(key))
    # As SIGNING.md has it: sorted, without spaces, in ASCII.
    text = rb'{"name":"tdnn","units":["\u00e9","b"]}'
    about = hashlib.sha256(text).hexdigest()
    assert release[:5] == ("asr", 2, line.names[1], about, line.names[0])
    assert json.loads((line.folder / f"{about}.json").read_text()) == ABOUT


def test_a_release_of_another_branch_is_signed_anew(line, key):
    signed_line.sign(line, key)
    first = line.model(line.names[0])
    other = {"weight": first["weight"] + 1}
    line.add(line.names[0], tensors.sha256(other), exact(first, other))
    with pytest.raises(ModelError, match=r"asr: what the release .* needs was not noted"):
        signed_line.sign(line, key)
    line.describe(tensors.sha256(other), {**ABOUT, "units": ["c"]})
    assert signed_line.sign(line, key) == [tensors.sha256(other)]


def test_a_statement_of_the_first_version_is_signed_anew(line, key):
    signed_line.sign(line, key)
    file = line.folder / "0001.signed"
    file.write_bytes(file.read_bytes().replace(b"fedspeech release 2", b"fedspeech release 1"))
    assert signed_line.sign(line, key) == [line.names[1]]


def test_a_release_is_described_once(line):
    line.describe(line.names[1], dict(reversed(ABOUT.items())))
    with pytest.raises(ModelError, match="has features or units other than these"):
        line.describe(line.names[1], {**ABOUT, "units": ["b", "é"]})


def test_a_device_takes_what_its_key_signs_and_never_goes_back(line, key, device):
    signed_line.sign(line, key)
    for name in line.names[1:]:
        trust.check(device, signed_line.statements(line, name), name, ABOUT)
    with pytest.raises(SignatureError, match="release 2 of 'asr' is older than 3"):
        trust.check(device, signed_line.statements(line, line.names[1]), line.names[1], ABOUT)


def test_what_is_not_signed_or_for_another_model_is_refused(line, key, device, tmp_path):
    name = line.names[0]
    assert signed_line.statements(line, name) == []
    with pytest.raises(SignatureError, match="not signed"):
        trust.check(device, [], name, ABOUT)
    signed_line.sign(line, key_files.make_key(tmp_path / "strangers.key"))
    with pytest.raises(SignatureError, match="signed by the key"):
        trust.check(device, signed_line.statements(line, name), name, ABOUT)
    signed_line.sign(line, key)
    with pytest.raises(SignatureError, match="model: signed for"):
        trust.check(device, signed_line.statements(line, name), line.names[1], ABOUT)


def test_a_device_follows_the_key_that_takes_over(line, key, device, tmp_path):
    signed_line.sign(line, key)
    trust.check(device, signed_line.statements(line, line.names[0]), line.names[0], ABOUT)
    successor = key_files.make_key(tmp_path / "next.key")
    said = signing.Rotation(signing.public(successor), "2026-01-31T12:00:00Z")
    (line.folder / "next.key.rotation").write_bytes(signing.sign_rotation(said, key))
    (line.folder / "0002.signed").unlink()
    signed_line.sign(line, successor)
    trust.check(device, signed_line.statements(line, line.names[2]), line.names[2], ABOUT)
    assert trust.Trust(device).key == signing.public(successor)


def test_a_device_without_a_key_takes_everything(line, tmp_path):
    trust.check(tmp_path / "device", [], line.names[0], ABOUT)
    assert not (tmp_path / "device").exists()
