import json
import os
import subprocess

import pytest
import torch

from fedspeech.device.store import BASE, DIFFERENCE, GENERIC, VALIDATION, Store
from fedspeech.errors import ModelError, RunError
from fedspeech.tensors import sha256, write


def model(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "b": torch.arange(4.0)}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "device" / "models")


def test_a_new_device_holds_nothing(store):
    assert store.state() == {} and store.hash(GENERIC) is None
    with pytest.raises(ModelError, match="this device holds no base model"):
        store.get(BASE)


def test_what_was_put_is_got_under_its_hash(store):
    for number, role in enumerate((GENERIC, DIFFERENCE, BASE, VALIDATION)):
        assert store.put(role, model(number)) == sha256(model(number)) == store.hash(role)
    again = Store(store.folder)
    for number, role in enumerate((GENERIC, DIFFERENCE, BASE, VALIDATION)):
        assert sha256(again.get(role)) == sha256(model(number))
    files = {f"{sha256(model(number))}.safetensors" for number in range(4)}
    assert set(names(store.folder)) == {*files, "state.json"}


def test_a_model_that_no_role_names_is_removed(store):
    store.put(GENERIC, model(0))
    store.put(BASE, model(0))  # one file in two roles
    assert len(list(store.folder.glob("*.safetensors"))) == 1
    store.put(GENERIC, model(1))
    assert sha256(store.get(BASE)) == sha256(model(0))
    store.put(BASE, model(1))
    assert len(list(store.folder.glob("*.safetensors"))) == 2  # and what was there before
    for role in (GENERIC, BASE):
        store.put(role, model(2))
    kept = {f"{sha256(model(number))}.safetensors" for number in (1, 2)}
    assert set(names(store.folder)) == {*kept, "state.json"}


def test_what_a_device_trains_itself_is_not_kept_beyond_its_time(store):
    for number in (1, 0):
        store.put(VALIDATION, model(number))
    assert names(store.folder) == [f"{sha256(model(0))}.safetensors", "state.json"]


def test_notes_are_kept_beside_the_models(store):
    store.note(description={"name": "tdnn"}, asked=None)
    store.put(DIFFERENCE, model(0), asked={"round": 1}, answered={"losses": [0.5]})
    store.note(extra="ع")
    assert Store(store.folder).state() == {
        "description": {"name": "tdnn"},
        "asked": {"round": 1},
        "answered": {"losses": [0.5]},
        "extra": "ع",
        DIFFERENCE: sha256(model(0)),
        "difference_from": None,  # there is no G yet
    }


def file_of(store: Store, role: str):
    return store.folder / f"{store.hash(role)}.safetensors"


@pytest.mark.parametrize("damage", ["flip", "truncate", "other"])
def test_a_damaged_file_is_told_and_mended_by_the_next_put(store, damage):
    store.put(BASE, model(0))
    path = file_of(store, BASE)
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(content[:-5])
    else:
        write(path, model(3))
    with pytest.raises(ModelError, match=r"base model is damaged|not a readable model"):
        store.get(BASE)
    store.put(BASE, model(0))
    assert sha256(store.get(BASE)) == sha256(model(0))


def test_only_what_is_undamaged_is_held(store):
    name = store.put("difference", model(3))
    path = store.folder / f"{name}.safetensors"
    assert store.holds("difference") and not store.holds("validation")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.hash("difference") == name
    assert not store.holds("difference")
    path.unlink()
    assert not store.holds("difference")


def test_a_file_that_is_gone_is_not_held(store):
    store.put(GENERIC, model(0))
    file_of(store, GENERIC).unlink()
    assert store.hash(GENERIC) is None
    with pytest.raises(ModelError, match="holds no generic model"):
        store.get(GENERIC)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_damaged_state_is_told(store, text):
    store.put(GENERIC, model(0))
    (store.folder / "state.json").write_text(text)
    with pytest.raises(ModelError, match=r"state.json: not readable: "):
        store.get(GENERIC)


NAME = "ab" * 32


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ([1], r"expected an object, found \[1\]"),
        ({"generic": 3}, "generic: expected a SHA-256 in hexadecimal digits, found 3"),
        ({"base": "../" + NAME}, "base: expected a SHA-256 .*, found '../abab"),
        ({"difference_from": NAME.upper()}, "difference_from: expected a SHA-256"),
        ({"previous": [NAME]}, "previous: expected an object with some of generic, .*, found"),
        ({"previous": {"other": {}}}, "previous: expected an object with some of generic"),
        ({"previous": {"base": NAME}}, "previous.base: expected an object that names a base, f"),
        ({"previous": {"base": {"generic": NAME}}}, "previous.base: expected an object that nam"),
        ({"previous": {"base": {"base": None}}}, "previous.base.base: expected a SHA-256"),
        ({"previous": {"base": {"base": {}}}}, "previous.base.base: expected a SHA-256"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_told(store, state, told):
    path = store.folder / "state.json"
    store.note(**{"generic": None})
    path.write_text(json.dumps(state))
    for use in (store.state, lambda: store.put(BASE, model(0)), lambda: store.rollback(BASE)):
        with pytest.raises(ModelError, match=f"^{path}: {told}"):
            use()
    assert json.loads(path.read_text()) == state


def test_where_the_disk_does_not_take_it_the_old_model_stays(store, child):
    store.put(BASE, model(0))
    done = child(
        """
import resource, sys
from pathlib import Path
import torch
from fedspeech.device.store import BASE, Store
from fedspeech.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Store(Path(sys.argv[1])).put(BASE, {"a": torch.zeros(100_000)})
except RunError as error:
    print(error)
""",
        store.folder,
    )
    assert done.stdout.startswith(f"cannot write {store.folder}"), done.stderr
    assert sha256(store.get(BASE)) == sha256(model(0))
    assert len(names(store.folder)) == 2
    blocked = Store(store.folder / "state.json" / "deeper")
    with pytest.raises(RunError, match="cannot write"):
        blocked.put(BASE, model(0))


# Simulated devices on one machine.


def test_devices_share_the_file_of_g(tmp_path):
    stores = [Store(tmp_path / name, tmp_path / "pool") for name in ("one", "two")]
    for store in stores:
        store.put(GENERIC, model(0))
        store.put(BASE, model(1))
    shared = {file_of(store, GENERIC).stat().st_ino for store in stores}
    (pooled,) = (tmp_path / "pool").iterdir()
    assert shared == {pooled.stat().st_ino} and pooled.stat().st_nlink == 3
    own = {file_of(store, BASE).stat().st_ino for store in stores}
    assert len(own) == 2  # only G is everybody's
    stores[0].put(GENERIC, model(2))
    assert sha256(stores[0].get(GENERIC)) == sha256(model(2))
    assert sha256(stores[1].get(GENERIC)) == sha256(model(0))


def test_a_damaged_file_of_the_pool_is_mended(tmp_path):
    stores = [Store(tmp_path / name, tmp_path / "pool") for name in ("one", "two")]
    stores[0].put(GENERIC, model(0))
    (pooled,) = (tmp_path / "pool").iterdir()
    with pooled.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(ModelError, match="the generic model is damaged"):
        stores[0].get(GENERIC)
    for store in reversed(stores):
        store.put(GENERIC, model(0))
        assert sha256(store.get(GENERIC)) == sha256(model(0))
    assert file_of(stores[0], GENERIC).samefile(file_of(stores[1], GENERIC))


def test_a_pool_on_another_disk_is_copied_from(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a second disk")
    (tmp_path / "pool").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "pool")]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no second disk here: {mounted.stderr.strip()}")
    try:
        store = Store(tmp_path / "device", tmp_path / "pool")
        store.put(GENERIC, model(0))
        assert sha256(store.get(GENERIC)) == sha256(model(0))
    finally:
        subprocess.run(["umount", str(tmp_path / "pool")], check=True)


# A device that is switched off.

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from fedspeech.device.store import DIFFERENCE, RECOGNIZER, Store
from fedspeech.tensors import sha256

store = Store(Path(sys.argv[1]))
models = [{"a": torch.full((300_000,), float(value))} for value in range(3)]
whole = [sha256(model) for model in models]
store.put(DIFFERENCE, models[2], round=0)
store.put(RECOGNIZER, models[0], number=0)
moments = random.Random(int(sys.argv[2]))
unfinished = 0
for _ in range(20):
    device = os.fork()
    if device == 0:
        while True:
            for number in (1, 0):
                store.put(RECOGNIZER, models[number], number=number)
    time.sleep(moments.uniform(0, 0.06))
    os.kill(device, signal.SIGKILL)
    _, status = os.waitpid(device, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    found = sha256(store.get(RECOGNIZER))
    assert found in whole[:2] and found == store.hash(RECOGNIZER)
    assert store.state()["number"] == whole.index(found)  # notes go with their model
    assert sha256(store.get(DIFFERENCE)) == whole[2]
    unfinished += len(list(store.folder.glob(".*.part")))
store.put(RECOGNIZER, models[0], number=0)
print(unfinished, len(list(store.folder.iterdir())))
"""


def test_a_device_killed_while_it_stores_holds_the_old_model_or_the_new_one(child, tmp_path):
    done = child(KILLED, tmp_path, 0)
    assert done.returncode == 0, done.stderr
    unfinished, files = map(int, done.stdout.split())
    assert unfinished > 0  # it was killed in the middle of a file at least once
    assert (
        files == 4
    )  # the recognizer and the one before, the other model, state.json: what was left over is gone


def test_state_is_readable_without_us(store):
    store.put(GENERIC, model(0), seconds=1.5)
    said = json.loads((store.folder / "state.json").read_text())
    assert said == {"generic": sha256(model(0)), "seconds": 1.5}


def test_models_that_belong_together_are_named_in_one_step(tmp_path, monkeypatch):
    store = Store(tmp_path)
    old = store.put_together({VALIDATION: model(1), DIFFERENCE: model(2)}, round=1)
    monkeypatch.setattr(store, "note", None)  # killed just before
    with pytest.raises(TypeError):
        store.put_together({VALIDATION: model(3), DIFFERENCE: model(4)}, round=2)
    left = Store(tmp_path)
    assert {role: left.hash(role) for role in old} == old
    assert left.state()["round"] == 1
    new = left.put_together({VALIDATION: model(3), DIFFERENCE: model(4)}, round=2)
    assert sha256(left.get(VALIDATION)) == new[VALIDATION] != old[VALIDATION]
    assert sha256(left.get(DIFFERENCE)) == new[DIFFERENCE] != old[DIFFERENCE]
