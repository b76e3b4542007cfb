"""How fast M_s is built for every speaker, beside a plain copy of the same files.

A plain copy reads each speaker's P_s and writes it; a rule builds each speaker's M_s and writes it.
What is counted is one model read and one written for each speaker, whatever a rule reads beyond.
All write to one file, again and again, that stays in the page cache. `cold`: the page cache holds
nothing of the models when a repetition begins; `warm`: whatever fits, from the one before.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.benchmarks.contestants import mute, ours
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, ratio, say, spread
from fedspeech import tensors
from fedspeech.population import Population
from strategies import Mean, Random
from strategies.bases import BaseModels
from strategies.view import SpeakerView

TABLE = "Averaging beside a plain copy"
LIMIT = 3600.0
PANELS = (Panel(TABLE, "way", "/ the copy's speed", ("speakers", "page cache")),)


@dataclass(frozen=True)
class Plan:
    """(speakers, model), k of `random`, and repetitions of everything and of `random`, which is
    tried cold only."""

    federations: tuple[tuple[int, str], ...]
    k: int = 50
    repeats: int = 3
    slow_repeats: int = 2


FULL = Plan(((100, "tdnn"), (400, "benchmark-4m")))
QUICK = Plan(((20, "benchmark-4m"),), k=10, repeats=2, slow_repeats=1)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each federation, state of the page cache, and way."""
    for number, model in plan.federations:
        folder = setting.folder / f"averaging-{number}"
        say(f"averaging: writing {number} models ({model})")
        try:
            yield from measure(Federation(folder, number, model, setting.seed), plan)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Federation:
    """Drawn models of some speakers on disk, and what is done to all of them."""

    def __init__(self, folder: Path, number: int, model: str, seed: int) -> None:
        self.folder, self.description = folder, mute.description(model)
        self.members = mute.members(range(number))
        self._out = folder / "out"
        generic, population = mute.generic(self.description, seed), Population(folder)
        self.size = tensors.size(generic)
        tensors.write(population.generic_path, generic)
        for member in self.members:
            population.keep(member.speaker, mute.difference(generic, member.speaker))

    @property
    def bytes(self) -> int:
        """One model read and one written for each speaker."""
        return 2 * self.size * len(self.members)

    def copy(self) -> None:
        """Read and write each P_s."""
        for member in self.members:
            shutil.copyfile(Population(self.folder).personal_path(member.speaker), self._out)

    def stream_mean(self) -> None:
        """Build each M_s of `mean` tensor by tensor, and write it."""
        rule, federation = Mean(), self._bases({}).federation(1)
        for member in self.members:
            with self._out.open("wb") as file:
                for _, tensor in rule.combine(
                    member.speaker, SpeakerView(federation, member.speaker)
                ):
                    file.write(memoryview(tensor.numpy()).cast("B"))

    def send(self, rule: Mean | Random) -> None:
        """Build each M_s as the engine does: checked, hashed, packed for its message; write it."""
        bases = self._bases({"base": rule})
        bases.decide(None, 1, "base")  # neither rule asks a device
        for _, _, records in bases.models(1, "base", None):
            with self._out.open("wb") as file:
                for array in records["model"].values():
                    file.write(array.data)

    def _bases(self, rules: dict[str, Mean | Random]) -> BaseModels:
        """A population that has read nothing yet, and what builds M_s out of it."""
        return ours.base_models(rules, Population(self.folder), self.description, self.members)

    def drop_from_page_cache(self) -> None:
        """Let the system forget all models; they are on disk."""
        for path in self.folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(federation: Federation, plan: Plan) -> Iterator[Row]:
    """A row for each state of the page cache and each way; the plain copy first."""
    ways: tuple[tuple[str, Callable[[], None], int], ...] = (
        ("plain copy", federation.copy, plan.repeats),
        ("mean", federation.stream_mean, plan.repeats),
        ("mean, hashed and packed", partial(federation.send, Mean()), plan.repeats),
        (
            f"random, k = {plan.k}, hashed and packed",
            partial(federation.send, Random(plan.k)),
            plan.slow_repeats,
        ),
    )
    for state in ("cold", "warm"):
        copied: list[float] = []
        for way, work, repeats in ways if state == "cold" else ways[:-1]:
            say(f"averaging: {len(federation.members)} speakers, {state}, {way}")
            seconds, read = [], 0
            for _ in range(repeats):
                if state == "cold":
                    federation.drop_from_page_cache()
                taken, read = timed(work)
                seconds.append(taken)
            copied = copied or seconds
            yield {
                "table": TABLE,
                "speakers": len(federation.members),
                "MB a model": federation.size / 1e6,
                "page cache": state,
                "way": way,
                "seconds": spread(seconds),
                "MB/s read and written": spread([federation.bytes / 1e6 / s for s in seconds]),
                "/ the copy's speed": ratio(copied[:repeats], seconds),
                "read from disk, MB": read / 1e6,
            }


def timed(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and bytes that this process read from disk, as far as the system counts them."""
    before, started = _read_bytes(), time.perf_counter()
    work()
    return time.perf_counter() - started, _read_bytes() - before


def _read_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return 0
