"""The folder that a run leaves behind, and who may write in it."""

import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from fedspeech import config as configuration
from fedspeech.accelerator import computes, trains_on_gpu
from fedspeech.config import Experiment
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import FedSpeechError, RunError
from fedspeech.tensors import write_whole

log = logging.getLogger("fedspeech")

MAY_DIFFER = ("versions", "git", "machine")
"""Of environment.json: what changes no setting, but may change what is computed."""
FREE = {
    "name",
    "rows",
    "engine.grid",
    "engine.workers",
    "engine.gpus_per_worker",
    "engine.simulated_gpus",
    "engine.retries",
    "engine.message_seconds",
    "engine.ray_address",
    "engine.superlink",
    "generic.signing_key",
    "parallel.form_seconds",
    "federation.deployment.boxes",
    "federation.deployment.wait",
    "federation.deployment.deadline",
    "comparison.simulated",
}
"""Settings, and tables of them, that may differ between a run and its resumption: they change no
model, unless clients train on a GPU by some of them and on a processor by others. Of a distillation
there may be other rows: each is trained by itself."""
ON_GPU = ("engine.grid", "engine.gpus_per_worker", "engine.simulated_gpus")
"""Settings that say where clients train."""
COMPUTES, WORKERS = "computes", "workers_compute"
"""In environment.json, of the machine: how this process does, and how Ray's workers do."""
VERSIONS = ("fedspeech", "torch", "torchaudio", "numpy", "scipy", "flwr", "ray", "lhotse", "jiwer")


_held: dict[Path, tuple[IO[str], bool]] = {}
"""Locks of this process, and whether the folder was new: a run's command and its server app take
the same folder."""


def cache_folder() -> Path:
    """Where features and synthesized corpora are kept between runs: `$FEDSPEECH_CACHE`."""
    own = os.environ.get("FEDSPEECH_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(shared) / "fedspeech"


def read_json(path: Path) -> Any:
    """What a run has kept. Raises RunError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); remove it, and go on with --resume") from None


class RunFolder:
    """Paths of a run, and a lock that lasts as long as this process writes there.

    A run has begun when its corpus is read; one that ends before that leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path / ".lock"
        self.config = path / "config.toml"
        self.journal = path / "journal.sqlite"
        self.models = path / "models"
        self.devices = path / "devices"
        self.metrics = path / "metrics"
        self.checkpoint = path / "generic.checkpoint"
        self.environment = path / "environment.json"
        self.results = path / "results.json"

    def open(self, settings: Experiment, resume: bool) -> None:
        """Take the folder for a run with these settings and write config.toml.

        Raises RunError where it holds another run, another process writes in it, or the disk does
        not take it.
        """
        if self.path in _held:
            return
        self._take(private=getattr(settings.engine, "grid", None) == "deployment")
        try:
            if self.config.exists():
                self._check_same(settings, resume)
                self._sweep()
            text = configuration.dump(settings)
            write_whole(self.config, lambda part: part.write_text(text, encoding="utf-8"))
        except FedSpeechError:
            self.close()
            raise

    def _sweep(self) -> None:
        """Remove what a killed process was writing; devices do so themselves."""
        for part in self.path.rglob(".*.part"):
            if self.devices not in part.parents:
                part.unlink(missing_ok=True)

    def cohort(self) -> int | None:
        """The size of cohorts that the run in this folder began with; None where there is none."""
        try:
            found = tomllib.loads(self.config.read_text(encoding="utf-8"))["engine"]["cohort"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # `open` says what is wrong with it
        return found if isinstance(found, int) else None

    def _take(self, private: bool) -> None:
        """Of boxes it holds their owners' models, which are nobody else's."""
        try:
            self.path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
            lock = self._lock.open("w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{self.path}: in use by another process") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot write there: {error}") from None
        _held[self.path] = lock, not self.config.exists()

    def _check_same(self, settings: Experiment, resume: bool) -> None:
        if not resume:
            raise RunError(
                f"{self.path}: there is a run already; go on with it (--resume), "
                "or choose another folder (--out)"
            )
        try:
            there = tomllib.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.config}: damaged, cannot be resumed: {error}") from None
        if not isinstance(there.get("engine", {}), dict):
            raise RunError(f"{self.config}: damaged, cannot be resumed: engine is no table")
        here = tomllib.loads(configuration.dump(settings))
        self._check_same_speakers(there, here)
        before, now = _flat(there), _flat(here)
        engines = [
            EngineSettings.model_construct(**each.get("engine", {})) for each in (there, here)
        ]
        moved = len(set(map(trains_on_gpu, engines))) > 1
        differing = [
            f"  {key}: {before.get(key)!r} there, {now.get(key)!r} here"
            for key in sorted(set(before) | set(now))
            if before.get(key) != now.get(key) and (not _free(key) or (moved and key in ON_GPU))
        ]
        if differing:
            raise RunError(
                f"{self.path}: that run had other settings; it cannot be resumed with these:\n"
                + "\n".join(differing)
            )
        self._check_computes_alike(there, here)

    def _check_same_speakers(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Owners of boxes are no speakers of the corpus: what one has finished is not another's."""
        kinds = [
            "on boxes" if each.get("engine", {}).get("grid") == "deployment" else "simulated"
            for each in (there, here)
        ]
        if len(set(kinds)) > 1:
            before, now = kinds
            raise RunError(
                f"{self.path}: that run is {before}, it cannot be resumed {now}; go on with it "
                "as it began, or choose another folder (--out)"
            )

    def _check_computes_alike(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Another device would go on to other numbers, and so would bfloat16."""
        if not self.environment.exists():
            return
        before, now = self._began_with()["machine"], _computes(here)
        said = {WORKERS: "workers of that run compute {}, here they would {}"}
        # G, too, is trained in this process, wherever clients are.
        if any(map(_trains_in_sight, (there, here))) or self.checkpoint.exists():
            said[COMPUTES] = "that run computes {}, here it would {}"
        for key, text in said.items():
            if before.get(key) and key in now and before[key] != now[key]:
                raise RunError(
                    f"{self.path}: {text.format(before[key], now[key])}; go on with it on a "
                    "machine like the one where it began, or choose another folder (--out)"
                )

    def close(self) -> None:
        """Let others write there."""
        if self.path not in _held:
            return
        lock, new = _held.pop(self.path)
        if new and not self.environment.exists():
            self.config.unlink(missing_ok=True)
            self._lock.unlink(missing_ok=True)
            with suppress(OSError):  # where something else is in it, the folder stays
                self.path.rmdir()
        lock.close()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one of the folder's JSON files, keys in their order, whole or not at all."""
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_whole(self.path / name, lambda part: part.write_text(text, encoding="utf-8"))

    def write_environment(self, seed: int, corpus_fingerprint: str) -> None:
        """Write what else the figures depend on: versions, machine, git state, corpus.

        Of a run that is resumed with other versions, another machine or other code those before are
        kept as well (`earlier`), and other versions are warned of. Raises RunError where it had
        another corpus.
        """
        settings = tomllib.loads(self.config.read_text(encoding="utf-8"))
        here = {
            "versions": {"python": platform.python_version(), **_versions()},
            "seed": seed,
            "git": _git_state(),
            "machine": {
                "system": platform.platform(),
                "processor": processor(),
                **_computes(settings),
            },
            "corpus": corpus_fingerprint,
            "command": sys.argv[1:],
        }
        if self.environment.exists():
            there = self._began_with()
            self._check_corpus(there["corpus"], corpus_fingerprint)
            if earlier := self._earlier(there, here):
                here["earlier"] = earlier
        self.write_json(self.environment.name, here)

    def _check_corpus(self, before: str, fingerprint: str) -> None:
        if before != fingerprint:
            raise RunError(
                f"{self.path}: the corpus is not the one that this run began with "
                f"(fingerprint {before[:12]} there, {fingerprint[:12]} here)"
            )

    def _earlier(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Any]:
        """What finished parts of the run were computed with, where that was not this."""
        earlier = list(there.get("earlier", []))
        told = {key: there[key] for key in MAY_DIFFER if key in there}
        if all(here[key] == value for key, value in told.items()):
            return earlier
        self._warn_of_versions(there["versions"], here["versions"])
        return [*earlier, told]

    def _warn_of_versions(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        other = [name for name in now if before.get(name, now[name]) != now[name]]
        if other:
            log.warning(
                "%s: began with %s, goes on with %s: what comes now may differ from what it would "
                "have been",
                self.path,
                *(" and ".join(f"{name} {each[name]}" for name in other) for each in (before, now)),
            )

    def _began_with(self) -> dict[str, Any]:
        """What is known of the run that is resumed: its corpus, its machine and more.

        Raises RunError where environment.json is damaged.
        """
        try:
            there = dict(json.loads(self.environment.read_text(encoding="utf-8")))
            known = {"corpus": str(there["corpus"]), "machine": dict(there.get("machine", {}))}
            return there | known | {"versions": dict(there.get("versions", {}))}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.environment}: damaged, cannot be resumed: {error!r}") from None


def _trains_in_sight(settings: Mapping[str, Any]) -> bool:
    """Whether what trains sees the GPUs that this process sees: Ray's workers need not."""
    engine = settings.get("engine", {})
    return "gpus_per_worker" not in engine or engine.get("grid") == "in-process"


def _computes(settings: Mapping[str, Any]) -> dict[str, str]:
    """Where models of this process compute, and in what; and those of Ray's workers on this
    machine, if there are any.
    """
    sections = [each for each in settings.values() if isinstance(each, dict)]
    asked = {each["precision"] for each in sections if "precision" in each}
    found = {COMPUTES: computes(asked)}
    engine = EngineSettings.model_construct(**settings.get("engine", {}))
    elsewhere = engine.grid == "deployment" or engine.ray_address is not None
    on_gpu = trains_on_gpu(engine)
    if _trains_in_sight(settings) or elsewhere or (on_gpu and not torch.cuda.is_available()):
        return found
    return found | {WORKERS: computes(asked, torch.device("cuda" if on_gpu else "cpu"))}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS}


def _git_state() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    try:
        said = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def processor() -> str:
    """How many cores of which processor this machine has, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _free(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in FREE)


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{above}{key}"
        found.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return found
