"""`fedspeech device`: what it says a device holds, and going back."""

import re

import pytest
import torch

from fedspeech.device.lock import locked
from fedspeech.device.store import BASE, DIFFERENCE, GENERIC, RECOGNIZER, VALIDATION, Store
from fedspeech.diff import budget
from fedspeech.tensors import sha256


def model(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value)}


@pytest.fixture
def device(tmp_path):
    """A device's folder: P_s trained on the first generation of G, then the second one."""
    store = Store(tmp_path / "s0001" / "models")
    store.put(GENERIC, model(0))
    store.put_together({DIFFERENCE: model(3), VALIDATION: model(4)})
    store.put(BASE, model(5))
    store.update(GENERIC, budget.make(model(0), model(1)).data)
    return tmp_path / "s0001"


def test_status_says_what_is_held(fedspeech, device):
    status, out, err = fedspeech("device", "status", device)
    assert (status, err) == (0, "")
    head, *rows = (re.split(r"\s{2,}", line) for line in out.splitlines())
    assert head == ["role", "generation", "bytes", "file", "before", "hash"]
    names = [sha256(model(value)) for value in range(6)]
    size = f"{(device / 'models' / f'{names[1]}.safetensors').stat().st_size:,}"
    assert rows == [
        ["generic", names[1][:12], size, "whole", names[0][:12], names[1]],
        ["difference", names[3][:12], size, "of another G", names[3]],
        ["base", names[5][:12], size, "whole", names[5]],
        ["validation", names[4][:12], size, "whole", names[4]],
    ]
    assert fedspeech("device", "status", device / "models") == (0, out, "")


def test_status_sees_what_is_damaged_or_gone(fedspeech, device):
    files = device / "models"
    content = (files / f"{sha256(model(1))}.safetensors").read_bytes()
    (files / f"{sha256(model(1))}.safetensors").write_bytes(content[:-1] + b"\1")
    (files / f"{sha256(model(4))}.safetensors").unlink()
    _, out, _ = fedspeech("device", "status", device)
    found = {line.split()[0]: re.split(r"\s{2,}", line)[2:4] for line in out.splitlines()}
    assert found["generic"][1] == "damaged" and found["validation"][0] == "missing"


def test_in_a_terminal_status_is_a_table(fedspeech, device, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = fedspeech("device", "status", device)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert re.search(
        rf"│ base +│ {sha256(model(5))[:12]} │ \d+ +│ whole +│ +│ {sha256(model(5))} ", plain
    )


def test_rollback_goes_back_once(fedspeech, device):
    first, again = sha256(model(0)), Store(device / "models")
    assert fedspeech("device", "rollback", device) == (0, f"generic: {first}\n", "")
    assert again.hash(GENERIC) == first and again.holds(DIFFERENCE)
    status, out, err = fedspeech("device", "rollback", device)
    assert (status, out) == (2, "")
    assert err == f"fedspeech: {device / 'models'}: there is no generic model to go back to\n"


def test_where_a_recognizer_was_installed_rollback_goes_back_to_the_one_before(fedspeech, device):
    store, first = Store(device / "models"), sha256(model(5))
    for number in (5, 6):
        store.put(RECOGNIZER, model(number), alpha=number)
    assert fedspeech("device", "rollback", device) == (0, f"recognizer: {first}\n", "")
    assert store.hash(RECOGNIZER) == first and store.state()["alpha"] == 5
    assert store.hash(GENERIC) == sha256(model(1))
    status, out, err = fedspeech("device", "rollback", device)
    assert (status, out) == (2, "") and "there is no recognizer model to go back to" in err
    generic = sha256(model(0))
    done = fedspeech("device", "rollback", device, "--role", "generic")
    assert done == (0, f"generic: {generic}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status", "nowhere"], "nowhere: no device's models here; expected models/state.json or"),
        (["rollback", "nowhere"], "nowhere: no device's models here"),
        (
            ["rollback", "s0001", "--role", "bse"],
            "--role: expected generic or recognizer, found 'bse'",
        ),
        (
            ["rollback", "s0001", "--role", "difference"],
            "--role: expected generic or recognizer, found",
        ),
    ],
)
def test_what_is_not_there_is_one_message(fedspeech, device, monkeypatch, arguments, told):
    monkeypatch.chdir(device.parent)
    status, out, err = fedspeech("device", *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"fedspeech: {told}")
    assert not (device.parent / "nowhere").exists()


def test_a_damaged_state_is_one_message(fedspeech, device):
    (device / "models" / "state.json").write_text("{")
    status, _, err = fedspeech("device", "status", device)
    assert status == 2 and "state.json: not readable: " in err and len(err.splitlines()) == 1


def test_nobody_goes_back_while_the_client_is_at_work(fedspeech, device):
    state = (device / "models" / "state.json").read_bytes()
    with locked(device / "models"):
        status, out, err = fedspeech("device", "rollback", device)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.endswith(
        f"{device / 'models'}: another process is at work on these models; try again when it is "
        "done\n"
    )
    assert (device / "models" / "state.json").read_bytes() == state
    assert fedspeech("device", "rollback", device)[0] == 0
