"""Generations that come as diffs: what a device holds then, before, and whatever happens."""

import itertools
import json
import os

import numpy as np
import pytest
import reference_diff
import torch
from small_models import arrays, generations

from fedspeech.device import store as store_module
from fedspeech.device.store import BASE, DIFFERENCE, GENERIC, RECOGNIZER, VALIDATION, Store
from fedspeech.diff import budget
from fedspeech.errors import DiffError, DiskError, ModelError
from fedspeech.tensors import Tensors, sha256


def chain() -> tuple[list[Tensors], list[bytes]]:
    """Three generations, and the two diffs between them."""
    models, diffs = [generations()[0]], []
    for new in (generations()[1], {**generations(5)[1], "more": torch.ones(3)}):
        made = budget.make(models[-1], new)
        models.append(made.result)
        diffs.append(made.data)
    return models, diffs


ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"
STRIDES = {"update": 3, "chain": 11, "rollback": 3}
"""Lines from one at which a device is killed to the next, unless it is killed at all of them."""
MODELS, DIFFS = chain()
NAMES = [sha256(model) for model in MODELS]


@pytest.fixture
def store(tmp_path) -> Store:
    """Of a device that holds the first generation."""
    store = Store(tmp_path / "device")
    store.put(GENERIC, MODELS[0], description={"units": 6}, other=1)
    return store


def held(store: Store) -> set[str]:
    """What lies in the folder, but for state.json."""
    return {path.stem for path in store.folder.iterdir()} - {"state"}


def test_a_diff_brings_the_next_generation_and_the_one_before_stays(store):
    assert store.update(GENERIC, DIFFS[0]) == NAMES[1] == store.hash(GENERIC)
    plain = reference_diff.apply(arrays(MODELS[0]), DIFFS[0])
    assert reference_diff.model_hash(arrays(store.get(GENERIC))) == reference_diff.model_hash(plain)
    assert held(store) == {NAMES[0], NAMES[1]} and store.previous(GENERIC) == NAMES[0]
    assert store.update(GENERIC, DIFFS[1]) == NAMES[2]
    assert held(store) == {NAMES[1], NAMES[2]} and store.previous(GENERIC) == NAMES[1]


def test_back_one_step_and_no_further(store):
    for data in DIFFS:
        store.update(GENERIC, data)
    assert store.rollback(GENERIC) == NAMES[1] == store.hash(GENERIC)
    assert sha256(store.get(GENERIC)) == NAMES[1]
    assert held(store) == {NAMES[1]} and store.previous(GENERIC) is None
    with pytest.raises(ModelError, match="device: there is no generic model to go back to"):
        store.rollback(GENERIC)
    assert store.update(GENERIC, DIFFS[1]) == NAMES[2]


def test_a_chain_is_one_step(store):
    assert store.update(GENERIC, *DIFFS, description={"units": 9}) == NAMES[2]
    assert sha256(store.get(GENERIC)) == NAMES[2]
    assert held(store) == {NAMES[0], NAMES[2]} and store.previous(GENERIC) == NAMES[0]
    assert store.rollback(GENERIC) == NAMES[0] == sha256(store.get(GENERIC))
    assert store.state()["description"] == {"units": 6} and held(store) == {NAMES[0]}


def test_notes_come_and_go_with_their_generation(store):
    before = store.state()
    store.update(GENERIC, DIFFS[0], description={"units": 8}, release="2")
    assert (store.state()["description"], store.state()["release"]) == ({"units": 8}, "2")
    store.note(other=2)
    store.rollback(GENERIC)
    # What was noted with the generation is as it was; what was not, as it is.
    after = {**before, "other": 2, "release": None, "previous": {}}
    assert store.state() == after


def test_the_same_diff_once_more_changes_nothing(store):
    """Killed after it had updated, a device is sent the same again."""
    store.update(GENERIC, DIFFS[0], release="2")
    before = store.state()
    assert store.update(GENERIC, DIFFS[0], release="2") == NAMES[1]
    assert store.state() == before and held(store) == {NAMES[0], NAMES[1]}
    assert store.rollback(GENERIC) == NAMES[0]


def test_m_s_comes_as_a_diff_from_g_and_then_from_itself(store):
    assert store.update(BASE, DIFFS[0]) == NAMES[1]
    assert store.update(BASE, DIFFS[1]) == NAMES[2]
    assert (store.hash(GENERIC), store.hash(BASE)) == (NAMES[0], NAMES[2])
    assert held(store) == {NAMES[0], NAMES[2]}


def test_g_and_the_recognizer_go_back_each_by_itself(store):
    store.put(RECOGNIZER, MODELS[0])
    store.update(GENERIC, DIFFS[0])
    store.put(RECOGNIZER, MODELS[1])
    store.rollback(GENERIC)
    assert (store.hash(GENERIC), store.hash(RECOGNIZER)) == (NAMES[0], NAMES[1])
    assert store.rollback(RECOGNIZER) == NAMES[0] and held(store) == {NAMES[0]}


@pytest.mark.parametrize("role", [DIFFERENCE, VALIDATION, BASE])
def test_of_what_a_run_works_with_nothing_earlier_is_kept(store, role):
    store.put(role, MODELS[1])
    store.update(role, DIFFS[1])
    assert store.previous(role) is None and held(store) == {NAMES[0], NAMES[2]}


@pytest.mark.parametrize("role", [GENERIC, RECOGNIZER])
def test_a_whole_model_leaves_the_one_before_as_well(store, role):
    store.put(role, MODELS[1], description={"units": 7})
    store.put(role, MODELS[2], description={"units": 8})
    assert store.previous(role) == NAMES[1] and {NAMES[1], NAMES[2]} <= held(store)
    assert store.rollback(role) == NAMES[1] == sha256(store.get(role))
    assert store.state()["description"] == {"units": 7}


def test_state_says_what_was_before(store):
    store.update(GENERIC, DIFFS[0], description=None)
    said = json.loads((store.folder / "state.json").read_text())
    before = {"generic": NAMES[0], "description": {"units": 6}}
    assert said == {
        "generic": NAMES[1], "description": None, "other": 1, "previous": {"generic": before}
    }  # fmt: skip


# P_s is kept as its difference from G.


def test_a_difference_is_of_one_generation_only(store):
    difference = {name: torch.ones_like(tensor) for name, tensor in MODELS[0].items()}
    store.put_together({DIFFERENCE: difference, VALIDATION: MODELS[0]})
    store.update(GENERIC, DIFFS[0])
    message = f"P_s is kept as a difference from {NAMES[0][:12]}, and G is {NAMES[1][:12]}"
    with pytest.raises(ModelError, match=message):
        store.get(DIFFERENCE)
    assert not store.holds(DIFFERENCE) and store.holds(VALIDATION)
    store.rollback(GENERIC)
    assert sha256(store.get(DIFFERENCE)) == sha256(difference) and store.holds(DIFFERENCE)
    store.update(GENERIC, DIFFS[0])
    store.put(DIFFERENCE, difference)  # trained anew
    assert store.holds(DIFFERENCE)
    store.rollback(GENERIC)
    with pytest.raises(ModelError, match=f"from {NAMES[1][:12]}, and G is {NAMES[0][:12]}"):
        store.get(DIFFERENCE)


def test_a_whole_g_ends_the_difference_too(store):
    store.put(DIFFERENCE, MODELS[0])
    store.put(GENERIC, MODELS[1])
    assert not store.holds(DIFFERENCE)
    store.put_together({GENERIC: MODELS[2], DIFFERENCE: MODELS[2]})
    assert store.holds(DIFFERENCE)


# What is refused changes nothing.


def flip(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("role", "data", "told"),
    [
        (GENERIC, DIFFS[1], f"the model {NAMES[1]}, and the generic model here is {NAMES[0]}"),
        (BASE, DIFFS[1], f"the model {NAMES[1]}, and there is no base model here"),
        (GENERIC, DIFFS[0][:-9], "the diff is damaged: .* bytes, and its header says"),
        (GENERIC, b"", "this is not a diff"),
    ],
)  # fmt: skip
def test_a_diff_that_does_not_fit_is_refused(store, role, data, told):
    before = store.state()
    with pytest.raises(DiffError, match=told):
        store.update(role, data)
    assert store.state() == before and held(store) == {NAMES[0]}


@pytest.mark.parametrize("last", [DIFFS[0], DIFFS[1][:-9]])
def test_of_a_chain_that_breaks_nothing_stays(store, last):
    before = store.state()
    with pytest.raises(DiffError, match=f"is for the model {NAMES[0]}, and this one is|damaged"):
        store.update(GENERIC, DIFFS[0], last)
    assert store.state() == before and held(store) == {NAMES[0]}


def test_a_damaged_model_is_told_apart_from_a_wrong_diff(store):
    flip(store.file(NAMES[0]))
    before = store.state()
    with pytest.raises(ModelError, match="the generic model is damaged"):
        store.update(GENERIC, DIFFS[0])
    assert store.state() == before and held(store) == {NAMES[0]}


def test_there_is_no_way_back_to_a_damaged_model(store):
    store.update(GENERIC, DIFFS[0])
    flip(store.file(NAMES[0]))
    before = store.state()
    with pytest.raises(ModelError, match=f"{NAMES[0]}.safetensors: the generic model is damaged"):
        store.rollback(GENERIC)
    assert store.state() == before and sha256(store.get(GENERIC)) == NAMES[1]


def test_a_full_disk_leaves_the_old_generation(small_disk):
    folder, resize = small_disk
    old, new = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    data = budget.make(old, new).data
    resize(600_000)
    store = Store(folder / "device")
    store.put(GENERIC, old)
    before = store.state()
    with pytest.raises(DiskError, match=r"cannot write .*: .*No space left"):
        store.update(GENERIC, data)
    assert store.state() == before and held(store) == {sha256(old)}
    assert sha256(store.get(GENERIC)) == sha256(old)
    resize(2_000_000)
    assert store.update(GENERIC, data) == sha256(new)


def test_a_disk_that_is_full_in_the_middle_of_a_chain_leaves_the_old_generation(small_disk):
    folder, resize = small_disk
    models = [{"w": torch.full((100_000,), float(value))} for value in range(3)]
    diffs = [budget.make(*pair).data for pair in itertools.pairwise(models)]
    resize(1_000_000)
    store = Store(folder / "device")
    store.put(GENERIC, models[0])
    before = store.state()
    with pytest.raises(DiskError, match=f"write .*/{sha256(models[2])}.safetensors: No space"):
        store.update(GENERIC, *diffs)
    assert store.state() == before and held(store) == {sha256(models[0])}
    resize(2_000_000)
    assert store.update(GENERIC, *diffs) == sha256(models[2])


# Simulated devices on one machine.


def test_devices_share_the_file_of_the_next_g(tmp_path, monkeypatch):
    stores = [Store(tmp_path / name, tmp_path / "pool") for name in ("one", "two")]
    for store in stores:
        store.put(GENERIC, MODELS[0])
    stores[0].update(GENERIC, DIFFS[0])
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "apply_files", lambda *_: 1 / 0)  # once is enough
        stores[1].update(GENERIC, DIFFS[0])
    pooled = tmp_path / "pool" / f"{NAMES[1]}.safetensors"
    for store in stores:
        assert store.file(NAMES[1]).samefile(pooled)
        assert sha256(store.get(GENERIC)) == NAMES[1]
    stores[0].rollback(GENERIC)
    assert sha256(stores[0].get(GENERIC)) == NAMES[0]
    assert sha256(stores[1].get(GENERIC)) == NAMES[1]
    stores[1].update(BASE, DIFFS[1])
    assert not (tmp_path / "pool" / f"{NAMES[2]}.safetensors").exists()


# A device that is switched off.

AT_EVERY_LINE = """
import os, shutil, signal, sys
from pathlib import Path
import torch
import fedspeech
from fedspeech.device.store import DIFFERENCE, GENERIC, Store
from fedspeech.diff import budget
from fedspeech.tensors import sha256

folder, act, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
begin, work = folder / "begin", folder / "work"
models = [{"a": torch.full((50,), float(v)), "b": torch.arange(4.0) + v} for v in range(4)]
diffs = [budget.make(models[n], models[n + 1]).data for n in range(3)]
home = fedspeech.__path__[0]
ours = tuple(f"{home}/{name}" for name in ("device", "tensors", "layout", "diff/apply"))

def run(store):
    if act == "update":
        store.update(GENERIC, diffs[1], release=3)
    elif act == "chain":
        # Killed after it had updated, a device is sent the same again.
        store.update(GENERIC, *diffs[1:], release=4)
    elif store.previous(GENERIC):
        store.rollback(GENERIC)

def after(store):
    # Everything that a device says and has, read back.
    return store.state(), sha256(store.get(GENERIC)), store.holds(DIFFERENCE)

def files(store):
    return sorted(path.name for path in store.folder.iterdir())

store = Store(begin)
store.put(GENERIC, models[0], release=1)
store.put(DIFFERENCE, models[0])
store.update(GENERIC, diffs[0], release=2)
shutil.copytree(begin, work)
old = after(Store(work))
run(Store(work))
new, whole = after(Store(work)), files(Store(work))
assert old[1] != new[1] and new[2] == (act == "rollback")

def killed_at(line):
    shutil.rmtree(work)
    shutil.copytree(begin, work)
    device = os.fork()
    if device == 0:
        passed = 0
        def trace(frame, event, argument):
            nonlocal passed
            if not frame.f_code.co_filename.startswith(ours):
                return None
            passed += event == "line"
            if passed == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        run(Store(work))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(device, 0)[1])

found, line = [], 1
while killed_at(line):
    left = after(Store(work))
    assert left in (old, new), (line, left)
    found.append(left == new)
    again = Store(work)
    run(again)
    assert after(again) == new, line
    # What is left over goes with the next update; there is none after going back.
    assert files(again) == whole or (act == "rollback" and left == new), line
    line += stride
assert found == sorted(found)  # once it is the new one it stays
print(found.count(False), found.count(True))
"""


@pytest.mark.faults
@pytest.mark.parametrize("act", STRIDES)
def test_killed_at_any_line_a_device_holds_the_old_generation_or_the_new_one(child, tmp_path, act):
    done = child(AT_EVERY_LINE, tmp_path, act, 1 if ALL else STRIDES[act])
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 10 and after > 3


AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from fedspeech.device.store import GENERIC, Store
from fedspeech.diff import budget
from fedspeech.tensors import sha256

store = Store(Path(sys.argv[1]))
models = [{f"{n}": torch.full((200_000,), float(v)) for n in range(4)} for v in range(2)]
whole = [sha256(model) for model in models]
diffs = [budget.make(*pair).data for pair in (models, models[::-1])]
store.put(GENERIC, models[0], number=0)
began = time.perf_counter()
store.update(GENERIC, diffs[0], number=1)
taken = time.perf_counter() - began
moments = random.Random(0)
unfinished = 0
for _ in range(20):
    device = os.fork()
    if device == 0:
        while True:
            number = whole.index(store.hash(GENERIC))
            store.update(GENERIC, diffs[number], number=1 - number)
    time.sleep(moments.uniform(0, 3 * taken))
    os.kill(device, signal.SIGKILL)
    os.waitpid(device, 0)
    found = sha256(store.get(GENERIC))
    assert found == store.hash(GENERIC) and store.state()["number"] == whole.index(found)
    unfinished += len(list(store.folder.glob(".*.part")))
    before = store.previous(GENERIC)
    assert before is None or store.rollback(GENERIC) == before == sha256(store.get(GENERIC))
print(unfinished)
"""


@pytest.mark.faults
def test_killed_at_random_a_device_holds_a_whole_generation(child, tmp_path):
    done = child(AT_RANDOM, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # in the middle of a file at least once


# What an update takes.

PREPARED = """
import sys
from functools import partial
from pathlib import Path
import torch
from fedspeech import models, seeding, tensors
from fedspeech.device.store import GENERIC, Store
from fedspeech.diff import budget
from fedspeech.diff.methods import METHODS, Learned
from fedspeech.diff.values import Kind

folder, share, shape, method = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
kind = Kind[sys.argv[5]]

def drawn(seed):
    with seeding.scoped(seed, 0, "", "a model of 14 million parameters"):
        if shape == "one tensor":
            return {"w": torch.randn(14_000, 1000)}
        return tensors.state(models.build("tdnn", 40, 500))

old, model = drawn(0), drawn(1)
Store(folder / "device").put(GENERIC, old)
way = METHODS.get(method, lambda base: None)(tensors.sha256(old))
if way is None:  # cells that were learned, since so many take long to be fitted
    array = torch.randn(int(share * old["w"].numel())).numpy()
    way, share = partial(Learned, arrays={"w": array}, seed=1), None
made = budget.make(old, model, method=way, kind=kind, share=share)
(folder / "next.diff").write_bytes(made.data)
print(tensors.size(model))
"""

MEASURED = """
import sys
from pathlib import Path
import torch
from fedspeech.device.store import GENERIC, Store
from fedspeech.diff import budget

folder = Path(sys.argv[1])

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def update(folder, data):
    Store(folder).update(GENERIC, data)

old, new = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
Store(folder / "small").put(GENERIC, old)
update(folder / "small", budget.make(old, new).data)  # whatever is loaded late
data = (folder / "next.diff").read_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
idle = memory("VmRSS")
update(folder / "device", data)
print(memory("VmHWM") - idle)
"""


@pytest.mark.parametrize(
    ("share", "shape", "method", "kind", "most"),
    [
        (1.0, "layers", "sparse", "FP16", 1.0),
        (0.4, "one tensor", "sparse", "FP32", 1.0),
        (1.0, "one tensor", "sparse", "FP32", 1.5),
        (0.1, "one tensor", "hash", "FP32", 0.75),
        (0.5, "one tensor", "learned hash", "FP32", 1.5),
    ],
)
def test_an_update_takes_at_most_one_and_a_half_times_the_models_memory(
    child, tmp_path, share, shape, method, kind, most
):
    """Resident memory at its peak (VmHWM: mapped files count) above that of the idle process."""
    prepared = child(PREPARED, tmp_path, share, shape, method, kind)
    assert prepared.returncode == 0, prepared.stderr
    size = int(prepared.stdout)
    done = child(MEASURED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert size >= 56e6
    assert 0 < int(done.stdout) <= most * size


def test_models_of_a_test_are_what_they_are_said_to_be():
    for old, new, data in zip(MODELS, MODELS[1:], DIFFS, strict=False):
        plain = reference_diff.apply(arrays(old), data)
        assert all(np.array_equal(plain[name], new[name].numpy()) for name in new)
