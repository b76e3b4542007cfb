"""`make test-containers`: the images are built and run, as the compose files have them.

It goes the way of docker/README.md: keys, server, boxes, a run, a transcript, and then the kills.
"""

import json
import os
import shutil
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import PREFIX, ROOT, Engine, Service, engine
from fleet import free_port, make_keys

from fedspeech import connection
from fedspeech.connection import Address

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(
        os.environ.get("FEDSPEECH_CONTAINERS") != "1", reason="`make test-containers` runs it"
    ),
]
IMAGES = ("proxy", "device", "client", "server")
BOXES = ("anna", "ben")
NOBODY = "1234:1234"
SERVER, PROXY, ANNA, BEN = (f"{PREFIX}{name}" for name in ("server", "proxy", *BOXES))
ALL = (SERVER, PROXY, ANNA, BEN)
INSIDE, OUTSIDE = (f"{PREFIX}{name}" for name in ("inside", "outside"))
DEVICE, CA, KEY = "/var/lib/fedspeech", "/run/secrets/ca.crt", "/run/secrets/box.key"
SECONDS = 180.0


@pytest.fixture(scope="module")
def containers(tmp_path_factory) -> Iterator[Engine]:
    """An engine with all images."""
    found = engine(tmp_path_factory.mktemp("engine"))
    if isinstance(found, str):
        pytest.skip(found)
    try:
        for image in IMAGES:
            found.build(image)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """What stands for the folder of the project; it belongs to no special user."""
    folder = tmp_path_factory.mktemp("home")
    names = ["--server", "localhost", "--server", PROXY]
    assert make_keys().main(["make", "--keys", str(folder / "keys"), *names, *BOXES]) == 0
    for name in ("runs", "corpus", "docker"):
        (folder / name).mkdir()
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    uid, gid = map(int, NOBODY.split(":"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid)
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(home: Path) -> Service:
    return Service("compose.yaml", "server", home, "fedspeech", FEDSPEECH_USER=NOBODY)


@pytest.fixture(scope="module")
def proxy(home: Path, port: int) -> Service:
    at = f"127.0.0.1:{port}"
    return Service("compose.yaml", "proxy", home, "fedspeech", FEDSPEECH_USER=NOBODY, PORT=at)


def box(home: Path, name: str, speech: Path) -> Service:
    return Service(
        *("compose.client.yaml", "box", home, name),
        FEDSPEECH_USER=NOBODY,
        SERVER=f"{PROXY}:8443",
        SPEECH=str(speech),
        BOX=str(home / "keys" / "boxes" / name),
    )


@pytest.fixture(scope="module")
def running(containers: Engine, home: Path, server: Service, proxy: Service) -> Engine:
    """Server, proxy and two boxes, as commands 3 to 7 have them."""
    containers.network(INSIDE, "--internal")
    containers.network(OUTSIDE)
    containers.up(SERVER, server, [INSIDE])
    until(lambda: containers.succeeds(SERVER, *server.health()), containers, SERVER)
    containers.up(PROXY, proxy, [OUTSIDE, INSIDE])
    until(lambda: containers.succeeds(PROXY, *proxy.health()), containers, PROXY)
    assert "anna: registered, node " in containers.inside(SERVER, "make-keys", "register")
    prepare = ("fedspeech", "corpus", "prepare", "experiments/boxes.toml", "--out", "runs/speech")
    containers.inside(SERVER, *prepare, seconds=900)
    for name, container, folder in zip(BOXES, (ANNA, BEN), owners(home), strict=True):
        containers.up(container, box(home, name, folder), [OUTSIDE])
    for container in (ANNA, BEN):
        until(lambda: online(containers) == len(BOXES), containers, container)
    return containers


def owners(home: Path) -> list[Path]:
    """The folders of speech that the boxes have."""
    return sorted(set((home / "runs" / "speech").iterdir()) - {home / "runs/speech/public"})


def until(found: Callable[[], object], containers: Engine, name: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < deadline, containers.logs(name)[-4000:]
        time.sleep(1)


def online(containers: Engine) -> int:
    """How many boxes are, in the SuperLink's eyes."""
    listed = ("flwr", "supernode", "list", "boxes", "--format", "json")
    said = containers.inside(SERVER, *listed, check=False)
    return said.count('"online"')


@pytest.mark.parametrize("name", [SERVER, PROXY, ANNA])
def test_a_container_has_no_rights(running: Engine, name):
    status = running.inside(name, "cat", "/proc/self/status")
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert found["Uid"].split() == ["1234"] * 4
    assert {found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    for place in ("/", "/opt", "/srv", "/usr/bin", "/etc"):
        said = running.inside(name, "touch", f"{place}/written", check=False)
        assert "Read-only file system" in said
    assert running.inside(name, "touch", "/tmp/written") == ""


@pytest.mark.parametrize("name", [SERVER, PROXY, ANNA])
def test_a_secret_is_in_no_environment_and_in_no_image(running: Engine, home: Path, name):
    described = running("inspect", name)
    for path in (home / "keys").rglob("*.key"):
        assert path.read_text().splitlines()[2] not in described
    image = running("inspect", "--format", "{{.Image}}", name).strip()
    look = ("--entrypoint=find", image, "/run/secrets", "/srv", "/var/lib/fedspeech")
    there = running("run", "--rm", "--network=none", *look, check=False)
    assert not [line for line in there.splitlines() if line.endswith((".key", ".crt"))]


def test_the_key_of_the_ca_is_nowhere(running: Engine):
    for name in ALL:
        said = running.inside(
            name, "find", "/run", "/srv", "/var/lib", "-name", "*.key", check=False
        )
        assert "ca.key" not in said
        assert ".key" in said


def test_control_is_reached_by_the_operator_only(running: Engine, home: Path, port: int):
    trust = ssl.create_default_context(cafile=home / "keys" / "ca.crt")
    for path, status in (("/v1/control/list-nodes", 404), ("/v1/fleet/pull-messages", 401)):
        reply = connection.ask(Address("localhost", port), trust, "POST", path)
        assert reply.status == status
    knock = "import socket; socket.create_connection(('{}', {}), 5)"
    assert not running.inside(ANNA, "python3", "-c", knock.format(PROXY, 8443))
    for host in (SERVER, "server", address(running, SERVER)):
        said = running.inside(ANNA, "python3", "-c", knock.format(host, 8000), check=False)
        assert said.strip().splitlines()[-1].startswith(("socket.gaierror", "OSError", "Timeout"))
    said = running.inside(SERVER, "python3", "-c", knock.format("192.0.2.1", 443), check=False)
    assert "unreachable" in said or "timed out" in said


def address(containers: Engine, name: str) -> str:
    """Of a container in the network inside."""
    (found,) = json.loads(containers("inspect", name))
    return str(found["NetworkSettings"]["Networks"][INSIDE]["IPAddress"])


def test_a_box_looks_around(running: Engine, home: Path):
    """Command 8."""
    lines = running.once(
        *(box(home, "anna", owners(home)[0]), OUTSIDE),
        *("doctor", "--server", f"{PROXY}:8443", "--ca", CA, "--key", KEY),
        *("--speech", "/speech", "--device", DEVICE),
        check=False,
    ).splitlines()
    found = {line[9:].split(":")[0]: line for line in lines}
    for name in ("name", "port", "TLS", "certificate", "clock", "key", "disk", "speech"):
        assert found[name].startswith("ok"), lines
    assert "of 1.0 GiB" in found["memory"]


def test_a_round_is_finished_and_a_box_hears_with_its_own_model(running: Engine, home: Path):
    """Commands 9 and 10."""
    run = ("fedspeech", "run", "experiments/boxes.toml", "--on", "deployment", "boxes")
    running.inside(SERVER, *run, seconds=1800)
    results = json.loads((home / "runs" / "boxes" / "results.json").read_text())
    assert results["speakers"] == 2 and (home / "runs" / "boxes" / "report.html").exists()
    run = ("run", "--rm", "--network=none", "--memory=1g", "--user", NOBODY)
    hear = ("fedspeech-client", "-c", f"fedspeech transcribe {DEVICE} /speech/audio/*0.wav")
    for name, container, speech in zip(BOXES, (ANNA, BEN), owners(home), strict=True):
        volumes = (f"{PREFIX}{name}-device:{DEVICE}:ro", f"{speech}:/speech:ro")
        mounted = [word for volume in volumes for word in ("--volume", volume)]
        lines = running(*run, *mounted, "--entrypoint=sh", *hear).splitlines()
        heard = dict(line.split("\t") for line in lines)
        waves = sorted(path.name for path in speech.glob("audio/*0.wav"))
        assert sorted(heard) == [f"/speech/audio/{wave}" for wave in waves] != []
        assert all(heard.values())
        assert running.state(container)["OOMKilled"] is False


def test_a_device_needs_no_flower_and_no_server(running: Engine, home: Path):
    """Its image hears with what the box holds, and has neither Flower nor Ray."""
    speech = owners(home)[0]
    run = ("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--user", NOBODY)
    run += ("--volume", f"{speech}:/speech:ro", "--volume", f"{PREFIX}anna-device:{DEVICE}")
    said = running(*run, "fedspeech-device", "corpus", "check", "/speech")
    assert "usable: " in said
    wave = next(speech.glob("audio/*.wav")).name
    said = running(*run, "fedspeech-device", "transcribe", DEVICE, f"/speech/audio/{wave}")
    assert said.startswith(f"/speech/audio/{wave}\t") and said.split("\t")[1].strip()
    for name in ("flwr", "ray"):
        look = ("--entrypoint=python3", "fedspeech-device", "-c", f"import {name}")
        assert f"No module named '{name}'" in running(*run, *look, check=False)


@pytest.mark.parametrize("name", [ANNA, PROXY, SERVER])
def test_what_is_killed_comes_back(running: Engine, proxy: Service, name):
    """As by the kernel; a SuperNode is refused at first, and is there again in the end."""
    before = running.state(name)["Pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: running.state(name)["Pid"] not in (0, before), running, name)
    until(lambda: running.succeeds(PROXY, *proxy.health()), running, PROXY)
    time.sleep(1 if name != ANNA else 70)
    until(lambda: online(running) == len(BOXES), running, ANNA)
