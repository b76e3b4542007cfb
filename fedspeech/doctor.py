"""What a machine offers for a run and what is missing, line by line: `fedspeech doctor`."""

import importlib
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

import fedspeech
from fedspeech import machine, models
from fedspeech.accelerator import computes_in_bf16
from fedspeech.config import Config
from fedspeech.finding import Finding, disk, gib
from fedspeech.run_folder import cache_folder
from fedspeech.simulation import sizing

ROOT_PACKAGES = ("server", "clients", "strategies")
SHOWN = ("torch", "torchaudio", "flwr", "ray")
"""Packages whose versions have to fit together most of all."""
SERVER_BYTES = 2 * 2**30
"""What the server's own process takes at most."""
WORKER_BYTES = 400 * 2**20
"""Anonymous memory of a worker before its first message, measured."""
RAY_SECONDS = 120.0
TRY_RAY = "from fedspeech.cluster import joining; joining.try_out()"


def findings() -> Iterator[Finding]:
    """Everything that is looked at, each as soon as it is known."""
    yield Finding("processors", f"{machine.cores()} of {os.cpu_count()} may be used")
    yield _memory()
    yield _gpus()
    yield _bf16()
    yield Finding("Python", platform.python_version())
    yield _packages()
    for name in ROOT_PACKAGES:
        yield _root_package(name)
    yield _ray()
    for what, folder in (("disk for runs", Path.cwd()), ("disk for the cache", cache_folder())):
        yield disk(what, folder)
    yield _espeak()
    for model in models.MODELS:
        yield _speakers_at_once(model)


def _memory() -> Finding:
    free, limit = machine.memory_free_bytes(), machine.memory_limit_bytes()
    least = SERVER_BYTES + WORKER_BYTES
    todo = f"at least {gib(least)} have to be free" if free < least else ""
    return Finding("memory", f"{gib(free)} free of {gib(limit)}", todo)


def _gpus() -> Finding:
    there = [f"{gpu.name}, {gib(gpu.free_bytes)} free" for gpu in machine.gpus()]
    if there:
        hint = "workers on Ray train on them where engine.gpus_per_worker is above 0"
        return Finding("GPUs", "; ".join([*there, hint]))
    todo = ""
    if (machine.PROC / "driver" / "nvidia" / "version").exists():
        release = Version(torch.__version__).base_version
        todo = (
            f"there is a driver that PyTorch {torch.__version__} cannot use: install torch and "
            f"torchaudio {release} as built for CUDA"
        )
    found = "none; models train on the processors, each by itself: stacks of them are slower there"
    return Finding("GPUs", found, todo, needed=False)


def _bf16() -> Finding:
    there = computes_in_bf16("auto")
    return Finding("bfloat16", "yes" if there else 'no; precision = "auto" means float32')


def _packages() -> Finding:
    """Whether what is installed is what this version asks for, Flower's own wishes included."""
    wrong = [_unmet(one) for one in _requirements("fedspeech", set())]
    todo = [line for line in wrong if line] or _fit_together()
    shown = ", ".join(f"{name} {_version(name) or 'missing'}" for name in SHOWN)
    return Finding("packages", shown, "; ".join(todo))


def _requirements(distribution: str, extras: set[str]) -> Iterator[Requirement]:
    for line in metadata.requires(distribution) or []:
        one = Requirement(line)
        wanted = [{"extra": extra} for extra in ["", *extras]]
        if one.marker is None or any(one.marker.evaluate(each) for each in wanted):
            yield one
            if one.extras and _version(one.name):
                yield from _requirements(one.name, one.extras)


def _unmet(one: Requirement) -> str:
    found = _version(one.name)
    if found and one.specifier.contains(found, prereleases=True):
        return ""
    wanted = f"{one.name}{one.specifier}"
    return f"{one.name} {found or 'is missing'}, expected {wanted}: pip install '{wanted}'"


def _fit_together() -> list[str]:
    """torch and torchaudio have to be built for the same kind of processor or GPU."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError) as error:
        return [f"torchaudio cannot be loaded with this torch: {_first_line(str(error))}"]
    return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _root_package(name: str) -> Finding:
    """`server`, `clients`, `strategies` are common names: is ours what an import gives?"""
    label = f"package `{name}`"
    ours = Path(fedspeech.__file__).parents[1] / name
    spec = importlib.util.find_spec(name)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    others = sorted(set(metadata.packages_distributions().get(name, [])) - {"fedspeech"})
    also = f"{', '.join(others)} installs it too: uninstall that" if others else ""
    if ours in places:
        return Finding(label, "fedspeech's own", also)
    found = str(places[0]) if places else "not there"
    return Finding(label, found, also or f"expected {ours}: take the other out of the Python path")


def _ray() -> Finding:
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRY_RAY], capture_output=True, text=True, timeout=RAY_SECONDS
        )
    except subprocess.TimeoutExpired:
        todo = f'no answer within {RAY_SECONDS:g} s; engine.grid = "in-process" does without'
        return Finding("Ray", "does not start", todo)
    if done.returncode == 0:
        return Finding("Ray", f"starts and answers in {time.monotonic() - started:.0f} s")
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was said"]
    return Finding("Ray", "does not start", f'{said[-1]}; engine.grid = "in-process" does without')


def _espeak() -> Finding:
    todo = "pip install 'fedspeech[synthetic]'; the demo speaks its corpus with it"
    try:
        library = Path(importlib.import_module("espeakng_loader").get_library_path())
    except ImportError:
        return Finding("espeak-ng", "not installed", todo, needed=False)
    if not library.exists():
        return Finding("espeak-ng", f"{library} is not there", todo, needed=False)
    return Finding("espeak-ng", str(library))


def _speakers_at_once(model: str) -> Finding:
    """How many speakers can be fine-tuned side by side: on GPUs as stacks, else one a worker."""
    settings = Config.model_validate({"model": {"name": model}})
    each = sizing.bytes_each(settings)
    with torch.device("meta"):
        size = models.parameters(models.build(model, settings.features.dimension, sizing.UNITS))
    about = f"{size / 1e6:.1f} million parameters, about {gib(each)} a speaker"
    if gpus := machine.gpus():
        most = sum(int(sizing.SHARE * gpu.free_bytes / each) for gpu in gpus)
        return _at_once(model, f"{about}: {most} speakers at once as stacks", most)
    room = max(0, machine.memory_free_bytes() - SERVER_BYTES) // (WORKER_BYTES + each)
    most = min(machine.cores(), room)
    return _at_once(model, f"{about}: {most} speakers at once (engine.workers)", most)


def _at_once(model: str, found: str, most: int) -> Finding:
    todo = "" if most >= 1 else "more memory, or a smaller model"
    return Finding(f"model {model}", found, todo, needed=False)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
