"""Containers as docker/compose*.yaml describes them, run by podman or docker."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BASE = os.environ.get("BASE") or "debian:bookworm-slim"
BUILD_OPTIONS = os.environ.get("BUILD_OPTIONS", "").split()
"""More options of `build`, such as the secret with pip's configuration."""
PREFIX = "fedspeech-test-"
"""Of everything that is made, so that nothing else is touched."""
FEW = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
"""Podman asks for more open files and processes than some kernels give to a container."""


class Engine:
    """podman or docker, and what was started with it; `close` removes all of that."""

    def __init__(self, command: str, folder: Path) -> None:
        self.command, self.folder = command, folder
        configuration = folder / "containers.conf"
        configuration.write_text(FEW)
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._made: list[tuple[str, str]] = []

    def __call__(self, *arguments: str | Path, check: bool = True, seconds: float = 120) -> str:
        """What a command of it prints."""
        done = subprocess.run(
            [self.command, *map(str, arguments)],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, f"{arguments}:\n{done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def works(self) -> str:
        """Why no container of the base image can be run here; empty where one can."""
        try:
            said = self("run", "--rm", "--network=none", BASE, "echo", "it works", check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if "it works" in said else said.strip().splitlines()[-1] if said else "nothing"

    def build(self, image: str) -> None:
        """An image of docker/Dockerfile."""
        options = ["--file", "docker/Dockerfile", "--network=host", "--build-arg", f"BASE={BASE}"]
        if index := os.environ.get("TORCH_INDEX"):
            options += ["--build-arg", f"TORCH_INDEX={index}"]
        what = ["--target", image, "--tag", f"fedspeech-{image}", "."]
        self("build", *options, *BUILD_OPTIONS, *what, seconds=3000)

    def network(self, name: str, *options: str) -> None:
        """A network."""
        self("network", "create", *options, name)
        self._made.append(("network", name))

    def up(self, name: str, service: "Service", networks: Sequence[str]) -> None:
        """A service's container, in the background."""
        for volume in service.volumes():
            self._made.append(("volume", volume))
        named = ["--name", name, "--network-alias", service.name]
        named += [f"--network={network}" for network in networks]
        self("run", "--detach", *named, *service.options(), *service.run())
        self._made.append(("container", name))

    def inside(self, name: str, *command: str, check: bool = True, seconds: float = 120) -> str:
        """What a command in a container prints."""
        return self("exec", name, *command, check=check, seconds=seconds)

    def once(self, service: "Service", network: str, *command: str, check: bool = True) -> str:
        """What a command prints in another container of a service: `compose run --rm SERVICE …`."""
        options = [*service.options()]
        restart = options.index("--restart")
        del options[restart : restart + 2]
        image, *_ = service.run()
        return self("run", "--rm", f"--network={network}", *options, image, *command, check=check)

    def succeeds(self, name: str, *command: str) -> bool:
        """Whether a command in a container ends well."""
        whole = [self.command, "exec", name, *command]
        done = subprocess.run(whole, env=self._environment, capture_output=True, timeout=60)
        return done.returncode == 0

    def state(self, name: str) -> Mapping[str, Any]:
        """How a container is."""
        (found,) = json.loads(self("inspect", name))
        return dict(found["State"])

    def logs(self, name: str) -> str:
        """What a container has said."""
        return self("logs", name, check=False)

    def close(self) -> None:
        """Remove what was started."""
        for kind, name in sorted(self._made):  # containers before networks before volumes
            self(kind, "rm", "--force", name, check=False)


class Service:
    """A service of a compose file, with its variables filled in, as options of `run`; `home` stands
    for the folder of the project, `project` names what belongs to it."""

    def __init__(self, file: str, name: str, home: Path, project: str, **variables: str) -> None:
        text = (DOCKER / file).read_text(encoding="utf-8")
        whole = yaml.safe_load(_filled(text, variables))
        self.name, self._home, self._secrets = name, home, whole["secrets"]
        self._project = project
        self._one = whole["services"][name]

    def options(self) -> Iterator[str]:
        """Everything but the network."""
        one = self._one
        yield from ("--user", one["user"], "--shm-size", one.get("shm_size", "64m"))
        yield from ("--memory", one["mem_limit"], "--memory-swap", one["memswap_limit"])
        yield from ("--pids-limit", str(one["pids_limit"]), "--restart", one["restart"])
        yield from ["--read-only"] * one["read_only"] + ["--init"] * one["init"]
        for option, key in (
            *(("--tmpfs", "tmpfs"), ("--cap-drop", "cap_drop")),
            *(("--security-opt", "security_opt"), ("--publish", "ports")),
        ):
            for value in one.get(key, []):
                yield from (option, value)
        for variable, value in one.get("environment", {}).items():
            yield from ("--env", f"{variable}={value}")
        for volume in one.get("volumes", []):
            yield from ("--volume", self._mounted(volume))
        for secret in one["secrets"]:
            source = self._path(self._secrets[secret]["file"])
            yield from ("--volume", f"{source}:/run/secrets/{secret}:ro")

    def _mounted(self, volume: str) -> str:
        source, rest = volume.split(":", 1)
        if source.startswith((".", "/")):
            return f"{self._path(source)}:{rest}"
        return f"{PREFIX}{self._project}-{source}:{rest}"

    def _path(self, relative: str) -> Path:
        """From the folder that holds the compose file."""
        return Path(os.path.normpath(self._home / "docker" / relative))

    def volumes(self) -> list[str]:
        """The named volumes."""
        names = [volume.split(":")[0] for volume in self._one.get("volumes", [])]
        return [
            f"{PREFIX}{self._project}-{name}" for name in names if not name.startswith((".", "/"))
        ]

    def run(self) -> list[str]:
        """Image and command."""
        return [f"fedspeech-{self._one['build']['target']}", *self._one.get("command", [])]

    def health(self) -> list[str]:
        """The command of the health check, for `exec`."""
        kind, *command = self._one["healthcheck"]["test"]
        return ["sh", "-c", *command] if kind == "CMD-SHELL" else command


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """As compose fills in ${NAME}, ${NAME:-default} and ${NAME:?message}."""

    def value(found: re.Match[str]) -> str:
        name, how, rest = found["name"], found["how"], found["rest"]
        if name in variables:
            return variables[name]
        assert how == ":-", f"{name}: {rest}"
        return rest

    pattern = r"\$\{(?P<name>\w+)(?P<how>:[-?])(?P<rest>[^}]*)\}"
    return re.sub(pattern, value, text).replace("$$", "$")


def engine(folder: Path) -> Engine | str:
    """podman or docker, or why there is none."""
    why = "neither podman nor docker is installed"
    for command in ("podman", "docker"):
        if shutil.which(command):
            found = Engine(command, folder)
            if not (why := found.works()):
                return found
            why = f"{command} cannot run {BASE}: {why}"
    return why
