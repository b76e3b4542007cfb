import os

import pytest
import torch

from fedspeech.device.candidates import Candidates
from fedspeech.errors import ModelError
from fedspeech.tensors import read, sha256


def difference(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "b": torch.arange(4.0)}


MODELS = {sha256(difference(value)): difference(value) for value in range(4)}
ONE, TWO, THREE, FOUR = MODELS


def names(folder) -> set[str]:
    return {path.name.removesuffix(".safetensors") for path in folder.iterdir()}


@pytest.mark.parametrize("pool", [None, "pool"])
def test_what_is_held_is_got_until_it_is_let_go(tmp_path, pool):
    held = Candidates(tmp_path / "here", tmp_path / pool if pool else None)
    for name in (ONE, TWO, THREE):
        held.hold(name, MODELS[name])
    held.hold_only({ONE, THREE, FOUR})
    assert names(held.folder) == {ONE, THREE}
    again = Candidates(held.folder)
    assert sha256(again.get(ONE)) == ONE and sha256(again.get(THREE)) == THREE
    with pytest.raises(ModelError, match="not a readable model"):
        held.get(TWO)
    held.hold_only(())
    assert names(held.folder) == set()


def test_devices_on_one_machine_share_a_file_until_the_last_lets_go(tmp_path):
    pool = tmp_path / "pool"
    devices = [Candidates(tmp_path / name, pool) for name in ("a", "b")]
    for held in devices:
        held.hold(ONE, MODELS[ONE])
    devices[1].hold(TWO, MODELS[TWO])
    files = [folder / f"{ONE}.safetensors" for folder in (pool, tmp_path / "a", tmp_path / "b")]
    assert len({path.stat().st_ino for path in files}) == 1
    devices[0].hold_only(())
    assert names(pool) == {ONE, TWO}
    assert sha256(devices[1].get(ONE)) == ONE
    devices[1].hold_only({TWO})
    assert names(pool) == {TWO}
    devices[1].hold_only(())
    assert names(pool) == set()


def test_where_no_link_is_possible_the_file_is_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    held = Candidates(tmp_path / "here", tmp_path / "pool")
    held.hold(ONE, MODELS[ONE])
    assert sha256(held.get(ONE)) == ONE
    held.hold_only(())
    assert names(tmp_path / "pool") == names(held.folder) == set()


def test_a_damaged_file_is_told_and_not_taken_from_the_pool(tmp_path):
    held = Candidates(tmp_path / "here", tmp_path / "pool")
    held.hold(ONE, MODELS[ONE])
    path = held.folder / f"{ONE}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the pool's is the same file
    with pytest.raises(ModelError, match="the model is damaged"):
        held.get(ONE)
    other = Candidates(tmp_path / "there", tmp_path / "pool")
    other.hold(ONE, MODELS[ONE])
    assert sha256(other.get(ONE)) == ONE


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path):
    held = Candidates(tmp_path)
    held.hold(ONE, MODELS[ONE])
    (tmp_path / f".{TWO}.safetensors.123.part").write_bytes(b"half")
    held.hold_only({ONE})
    assert names(tmp_path) == {ONE}
    assert sha256(read(tmp_path / f"{ONE}.safetensors")) == ONE
