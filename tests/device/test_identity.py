"""The name by which a server knows a box's owner."""

import json
import re
import subprocess

import pytest

from clients.speaker import Speaker
from fedspeech.device import identity
from fedspeech.device.trust import Trust
from fedspeech.errors import ConfigError, DiskError


def test_a_name_is_drawn_once(tmp_path):
    first = identity.settle(tmp_path / "a")
    assert re.fullmatch("box-[0-9a-f]{16}", first)
    assert identity.settle(tmp_path / "a") == first
    assert identity.settle(tmp_path / "b") != first


def test_a_name_that_is_given_is_kept(tmp_path):
    assert identity.settle(tmp_path, "anna") == "anna"
    assert identity.settle(tmp_path) == "anna"
    assert json.loads((tmp_path / "device.json").read_text())["speaker"] == "anna"


def test_a_devices_own_budgets_are_those_given_last_and_are_told_to_the_server(tmp_path):
    identity.settle(tmp_path, "anna", {"base": "20x"})
    identity.settle(tmp_path, budgets={"base": "500kB", "personal": "10x"})
    assert identity.settle(tmp_path, budgets={"base": "500kB", "personal": "10x"}) == "anna"
    for file in ("train.jsonl", "test.jsonl"):
        (tmp_path / file).write_text("")
    told = Speaker(tmp_path).describe()
    assert told["speaker"] == "anna"
    assert told["budgets"] == {"base": "500kB", "personal": "10x"}
    identity.settle(tmp_path)
    assert Speaker(tmp_path).describe()["budgets"] == {}


def test_a_device_stays_its_owners(tmp_path):
    identity.settle(tmp_path, "anna")
    with pytest.raises(ConfigError, match="this is anna's device, not ben's"):
        identity.settle(tmp_path, "ben")


def test_nobody_else_may_look_into_a_devices_folder(tmp_path):
    identity.settle(tmp_path / "new" / "device")
    Trust(tmp_path / "pinned").pin("ab" * 32)
    for folder in (tmp_path / "new" / "device", tmp_path / "pinned"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["", "../anna", "a b", "-anna", "a" * 129])
def test_names_that_could_be_paths_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="--name: expected letters"):
        identity.settle(tmp_path, name)
    assert not (tmp_path / "device.json").exists()


def test_a_folder_that_cannot_be_written_is_told(small_disk):
    """Also where it has been somebody's device before."""
    folder, _ = small_disk
    identity.settle(folder, "anna")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(DiskError, match=f"cannot write in {folder}: Read-only file system"):
        identity.settle(folder)
    with pytest.raises(DiskError, match="Read-only file system"):
        identity.settle(folder / "new")


def test_a_damaged_file_is_nobodys(tmp_path):
    (tmp_path / "device.json").write_text("{")
    with pytest.raises(ConfigError, match=r"device\.json: damaged"):
        identity.settle(tmp_path)
