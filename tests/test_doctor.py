"""`fedspeech doctor`, on this machine and with something missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedspeech import cli, doctor, finding, machine, models


def the(name: str, findings) -> doctor.Finding:
    (found,) = (one for one in findings if one.name == name)
    return found


def test_a_machine_on_which_the_tests_run_lacks_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedspeech", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0, lines
    assert all(re.match(r"(ok|optional) +[^ ].*: ", line) for line in lines)
    told = dict(line[9:].split(": ", 1) for line in lines)
    assert told["processors"].startswith(f"{machine.cores()} of ")
    assert torch.__version__.split("+")[0] in told["packages"]
    assert re.fullmatch(r"starts and answers in \d+ s", told["Ray"])
    assert {f"package `{name}`" for name in ("server", "clients", "strategies")} <= set(told)
    for name in models.MODELS:
        assert re.search(r"million parameters, about .* GiB a speaker: \d+ ", told[f"model {name}"])


def test_on_a_terminal_it_is_a_table(monkeypatch, capsys):
    found = [doctor.Finding("processors", "2"), doctor.Finding("Ray", "does not", "mend it")]
    monkeypatch.setattr(doctor, "findings", lambda: iter(found))
    monkeypatch.setattr(sys, "argv", ["fedspeech", "doctor"])
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert end.value.code == 1
    assert re.search(r"│ missing │ Ray +│ does not │ mend it │", said)


def test_only_what_every_run_needs_counts(monkeypatch, capsys):
    found = [doctor.Finding("espeak-ng", "not installed", "install it", needed=False)]
    monkeypatch.setattr(doctor, "findings", lambda: iter(found))
    monkeypatch.setattr(sys, "argv", ["fedspeech", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert capsys.readouterr().out == "optional espeak-ng: not installed; install it\n"


# What is missing, each really missing for a process of its own.

SAY = "from fedspeech import doctor; print(*doctor.{}, sep='|')"


@pytest.fixture
def first(tmp_path, monkeypatch) -> Path:
    """A folder that Python looks into before all others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def installed(folder: Path, name: str, version: str, package: str = "") -> None:
    """A distribution, as pip leaves it there."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if package:
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("")
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n")


def test_another_distribution_in_the_place_of_ours(first, child):
    installed(first, "flask-server", "1.0", package="server")
    found = child(SAY.format("_root_package('server')")).stdout
    assert found == (
        f"package `server`|{first / 'server'}|flask-server installs it too: uninstall that|True\n"
    )
    assert "uninstall" not in child(SAY.format("_root_package('clients')")).stdout


def test_a_folder_in_the_place_of_ours(first, child):
    (first / "clients").mkdir()
    (first / "clients" / "__init__.py").write_text("")
    _, found, todo, _ = child(SAY.format("_root_package('clients')")).stdout.split("|")
    assert found == str(first / "clients")
    assert todo.endswith("clients: take the other out of the Python path")


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("flwr", "1.42.0", "flwr 1.42.0, expected flwr==1.41.0: pip install 'flwr==1.41.0'"),
        ("ray", "2.54.0", "ray 2.54.0, expected ray==2.55.1: pip install 'ray==2.55.1'"),
        ("torchaudio", "2.11.1", "torchaudio 2.11.1, expected torchaudio==2.11.0"),
    ],
)
def test_versions_that_do_not_fit_together(first, child, name, version, told):
    installed(first, name, version)
    _, found, todo, needed = child(SAY.format("_packages()")).stdout.strip().split("|")
    assert f"{name} {version}" in found
    assert told in todo
    assert needed == "True"


def test_a_torchaudio_that_cannot_be_loaded(first, child):
    (first / "torchaudio.py").write_text("raise OSError('libtorch_cuda.so: undefined symbol')")
    *_, todo, _ = child(SAY.format("_packages()")).stdout.split("|")
    assert todo == (
        "torchaudio cannot be loaded with this torch: libtorch_cuda.so: undefined symbol"
    )


def test_a_ray_that_does_not_start(first, child):
    (first / "ray.py").write_text("raise ImportError('no such library')")
    assert child(SAY.format("_ray()")).stdout == (
        'Ray|does not start|ImportError: no such library; engine.grid = "in-process" does '
        "without|True\n"
    )


def test_without_espeak(first, child):
    (first / "espeakng_loader.py").write_text("raise ImportError")
    _, found, todo, needed = child(SAY.format("_espeak()")).stdout.strip().split("|")
    assert (found, needed) == ("not installed", "False")
    assert todo.startswith("pip install 'fedspeech[synthetic]'")


def test_an_installation_that_is_not_whole(first, child):
    (first / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    code = "import sys; sys.argv[1:] = ['doctor']; from fedspeech import cli; cli.main()"
    done = child(code)
    assert done.returncode == 1
    assert done.stdout == "missing  No module named 'torch'; install fedspeech anew\n"


def test_a_full_disk_and_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_free_bytes", lambda: 2**30)
    assert doctor._memory().todo == "at least 2.4 GiB have to be free"
    assert ": 0 speakers at once" in doctor._speakers_at_once("tdnn-tiny").found
    monkeypatch.setattr(machine, "memory_free_bytes", lambda: 4 * 2**30)
    assert doctor._memory().status == "ok"
    # 4 GiB less 2 for the server: a worker with the tiny model takes 0.7, with the large one 2.9.
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "gpus", list)
    assert ": 2 speakers at once" in doctor._speakers_at_once("tdnn-tiny").found
    assert doctor._speakers_at_once("tdnn").status == "optional"
    monkeypatch.setattr(finding, "LEAST_DISK", 2**60)
    found = finding.disk("disk for runs", tmp_path / "not" / "there")
    assert found.found.endswith(f"free in {tmp_path}")
    assert found.status == "missing"


def test_a_disk_that_cannot_be_written(small_disk, monkeypatch):
    folder, _ = small_disk
    monkeypatch.setattr(finding, "LEAST_DISK", 2**10)
    assert finding.disk("disk", folder).status == "ok"
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    for place in (folder, folder / "not" / "there"):
        found = finding.disk("disk", place)
        assert found.status == "missing"
        assert found.found == f"cannot write in {folder}: Read-only file system"


def test_gpus_and_what_it_takes_to_train_on_them(monkeypatch):
    there = [machine.Gpu("Card A", 2**30, 2**31), machine.Gpu("Card B", 2**31, 2**31)]
    monkeypatch.setattr(machine, "gpus", lambda: there)
    assert doctor._gpus().found == (
        "Card A, 1.0 GiB free; Card B, 2.0 GiB free; "
        "workers on Ray train on them where engine.gpus_per_worker is above 0"
    )
