"""Every container of `docker/`: what it may not do, and what it must survive."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requirements
import typer
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from fedspeech import key_files, signing
from fedspeech.cli import app
from fedspeech.device.trust import Trust

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("compose.yaml", "compose.client.yaml")
WRITTEN = {"/srv/fedspeech/runs"}
"""The only folder of the host that a container writes."""


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


SERVICES = {
    f"{file}: {name}": service for file in FILES for name, service in load(file)["services"].items()
}


@pytest.fixture(params=SERVICES)
def service(request) -> Mapping[str, Any]:
    return SERVICES[request.param]


def test_nobody_is_root_and_nothing_can_be_written_or_gained(service):
    assert service["user"] == "${FEDSPEECH_USER:-1000:1000}"
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service)


def test_nobody_takes_all_memory_or_all_processes_or_the_whole_disk(service):
    assert service["mem_limit"] == service["memswap_limit"]  # no swap
    assert re.fullmatch(r"(\$\{\w+:-)?\d+[mg]\}?", service["mem_limit"])
    assert service["pids_limit"] <= 2048
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_everything_comes_back_and_never_gives_up(service):
    """A SuperNode that was killed is refused for up to a minute."""
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert service["healthcheck"]["test"]
    assert service["healthcheck"]["interval"] == "30s"


def test_what_is_secret_is_a_file_and_stands_in_no_environment(service):
    names = [*service.get("environment", {})]
    assert not [name for name in names if re.search("SECRET|TOKEN|PASS|PRIVATE_KEY", name)]
    for name in service["secrets"]:
        assert re.fullmatch(r"(ca|server|box)\.(crt|key)", name)
    for file in FILES:
        for name, secret in load(file)["secrets"].items():
            assert list(secret) == ["file"] and secret["file"].endswith(f"/{name}")


def test_the_key_of_the_ca_is_nowhere():
    for path in DOCKER.iterdir():
        if path.name.startswith(("compose", "Dockerfile")) or "start" in path.name:
            assert "ca.key" not in path.read_text(encoding="utf-8"), path


def test_what_comes_from_the_host_is_only_read_but_for_the_runs(service):
    for volume in service.get("volumes", []):
        source, target, *mode = re.sub(r"\$\{[^}]*\}", "/given", volume).split(":")
        if source.startswith((".", "/")) and target not in WRITTEN:
            assert mode == ["ro"], volume


def test_control_stays_inside():
    """The SuperLink is in a network without a way out, and only the proxy is in it as well."""
    whole = load("compose.yaml")
    services, networks = whole["services"], whole["networks"]
    assert services["server"]["networks"] == ["inside"]
    assert networks["inside"] == {"internal": True}
    assert [name for name, one in services.items() if "inside" in one["networks"]] == [
        "server",
        "proxy",
    ]
    assert [name for name, one in services.items() if "ports" in one] == ["proxy"]
    assert services["proxy"]["ports"] == ["${PORT:-8443}:8443"]
    assert not load("compose.client.yaml")["services"]["box"].get("ports")


def test_the_proxy_waits_for_a_superlink_that_is_well():
    waits = load("compose.yaml")["services"]["proxy"]["depends_on"]
    assert waits == {"server": {"condition": "service_healthy", "restart": True}}


@pytest.mark.parametrize(
    ("service", "script", "wanted"),
    [
        ("server", "start-superlink", r"\$\{(\w+):\?\}"),
        ("proxy", "nginx.conf.template", r"\$\{(\w+)\}"),
    ],
)
def test_a_script_is_told_all_it_wants_and_nothing_else(service, script, wanted):
    """FLWR_HOME is told by the image."""
    told = set(load("compose.yaml")["services"][service]["environment"])
    found = set(re.findall(wanted, (DOCKER / script).read_text(encoding="utf-8")))
    assert found - {"FLWR_HOME"} == told
    assert ("FLWR_HOME" in found) == ("FLWR_HOME=/var/lib" in STAGES[service])


def test_the_box_is_started_as_the_command_line_has_it():
    box = load("compose.client.yaml")["services"]["box"]
    command, *words = box["command"]
    options = dict(word.removeprefix("--").split("=", 1) for word in words)
    assert command == "box"
    assert {options[name].split("/")[-1] for name in ("key", "ca")} == set(box["secrets"])
    targets = [re.sub(r"\$\{[^}]*\}", "given", each).split(":")[1] for each in box["volumes"]]
    assert targets == [options["device"], options["speech"]]


def test_a_box_may_be_told_which_channel_to_take():
    ((variable, given),) = load("compose.client.yaml")["services"]["box"]["environment"].items()
    options = typer.main.get_command(app).commands["box"].params
    assert variable in [option.envvar for option in options if option.name == "channel"]
    assert given == "${CHANNEL:-}"


def test_what_is_done_beside_a_box_takes_none_of_its_memory():
    """By the README's commands: `docker exec` would be killed with the training, or kill it."""
    text = (DOCKER / "README.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(# 1\..*?)```", text, re.S)[1].replace("\\\n", " ")
    assert not re.search(r"docker exec|\bANNA exec", commands)
    (doctor,) = re.findall(r"^\$ANNA run --rm box (doctor .*)$", commands, re.M)
    box = load("compose.client.yaml")
    told = {word for word in box["services"]["box"]["command"] if word.startswith("--")}
    _, *words = shlex.split(doctor)
    asked = dict(zip(words[::2], words[1::2], strict=True))
    assert {f"{name}={asked[name]}" for name in ("--ca", "--key", "--speech", "--device")} <= told
    (hear,) = re.findall(r"^docker run --rm .*transcribe.*$", commands, re.M)
    assert "--network none --memory 1g " in hear
    (volume,) = box["volumes"]
    assert f"--volume anna_{volume}:{asked['--device']}:ro" in hear
    assert "--entrypoint sh fedspeech-client -c" in hear


def test_a_key_is_pinned_where_the_box_looks_for_it(tmp_path):
    """By the README's command, whose paths are those inside the container."""
    text = (DOCKER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^\$ANNA run --rm --volume \$PWD/(\S+):(\S+):ro box +(.*)$", text, re.M)
    given, mounted, command = line
    box = load("compose.client.yaml")["services"]["box"]["command"]
    (device,) = [word.removeprefix("--device=") for word in box if word.startswith("--device=")]
    places = {device: tmp_path / "device", mounted: tmp_path / given}
    key = key_files.make_key(tmp_path / given.removesuffix(".pub"))
    words = [str(places.get(word, word)) for word in command.split()]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert Trust(tmp_path / "device").key == signing.public(key)


# The images.

DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
IMAGES = ("device", "client", "server", "proxy")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_special(image):
    assert re.findall(r"^USER (.*)$", STAGES[image], re.M) == ["1000:1000"]
    assert re.search(r"^(CMD|ENTRYPOINT) \[", STAGES[image], re.M)


def test_every_image_grows_from_the_given_base():
    begins = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M))
    assert {base for base in begins if base not in STAGES} == {"${BASE}"}
    services = [load(file)["services"] for file in FILES]
    built = {one["build"]["target"] for each in services for one in each.values()}
    assert built | {"device"} == set(IMAGES) <= set(STAGES)
    for each in services:
        for one in each.values():
            assert one["build"]["args"]["BASE"] == "${BASE:-debian:bookworm-slim}"


def test_what_is_copied_into_images_is_there_and_holds_no_secret():
    allowed = set((ROOT / ".dockerignore").read_text().split("\n"))
    assert "*" in allowed
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{Path(source).parts[0]}" in allowed, source
    assert not [
        line
        for line in allowed
        if re.search("key|run|shared|speech$", line[1:10]) and line not in ("!fedspeech",)
    ]


def names(image: str) -> set[str]:
    return {Requirement(line).name for line in requirements.requirements(image)}


def test_an_image_has_no_more_than_it_needs():
    every = {Requirement(line).name for line in requirements.requirements("server")}
    assert {"torch", "torchaudio", "flwr", "matplotlib"} <= every
    assert every - names("client") == {
        *("espeakng-loader", "matplotlib", "pytorch-optimizer", "scipy", "tensorboard")
    }
    assert names("client") - names("device") == {"flwr", "jiwer"}
    extras = {i: Requirement(_line(i, "flwr")).extras for i in ("server", "client")}
    assert extras == {"server": {"simulation"}, "client": set()}
    assert Requirement(_line("client", "flwr")).specifier == (
        Requirement(_line("server", "flwr")).specifier
    )


def _line(image: str, name: str) -> str:
    (found,) = [r for r in requirements.requirements(image) if Requirement(r).name == name]
    return found


SCRIPTS = ("start-proxy", "start-superlink", "install-packages")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_run(name):
    path = DOCKER / name
    shell = path.read_text(encoding="utf-8").splitlines()[0].split("/")[-1].split()[-1]
    assert path.stat().st_mode & 0o100
    subprocess.run([shell, "-n", path], check=True)


def test_a_script_that_is_not_told_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [DOCKER / "start-proxy"],
        env={"PATH": "/usr/bin:/bin", "LISTEN": "127.0.0.1:1", "HEALTH": "127.0.0.1:2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("start-proxy: expected SUPERLINK in the environment")
