"""What the server holds in memory against the number of speakers, at 14 million parameters.

The clients answer at once, with drawn numbers in place of a trained model. Ours: all P_s are
received and kept, then every M_s of `mean`, of `random` and of a racing `kbest` is built and sent;
for the last all P_s go to everybody before. Flower's: one round of its FedAvg. Anonymous memory is
RssAnon of the server's process.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.benchmarks.contestants import CORES, flower, mute, ours
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Channel, Child, Failed, Row, Setting, say
from fedspeech import tensors
from fedspeech.config import Config
from fedspeech.population import Population
from fedspeech.run_folder import RunFolder
from fedspeech.simulation.launch import make_grid
from server.journal import Journal
from server.recorded_grid import RecordedGrid
from strategies import KBest, Mean, Random

TABLE = "Memory of the server"
FINE_TUNING = "fine-tuning"
LIMIT = 5400.0
ANSWER_LIMIT = 3000.0
PANELS = (Panel(TABLE, "speakers", "anonymous above idle, MiB", ("engine", "step")),)
POLL_SECONDS = 0.02
MOST_OF_THE_DISK = 0.8
"""The share of what is free that the personal models may take."""


@dataclass(frozen=True)
class Plan:
    """Numbers of speakers, the model, k of `random` and of `kbest`, and where Flower's process is
    ended."""

    speakers: tuple[int, ...]
    flowers: tuple[int, ...]
    model: str = "tdnn"
    k: int = 50
    best: int = 10
    flowers_mib: float = 8192


FULL = Plan((20, 100, 400), (20, 50, 100, 200, 400))
QUICK = Plan((5, 10), (5, 10), k=4, best=2, flowers_mib=2048)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each number of speakers and step, ours first."""
    model = mute.generic(mute.description(plan.model), setting.seed)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.values())
    for number in plan.speakers:
        room = int(MOST_OF_THE_DISK * shutil.disk_usage(setting.folder).free / size)
        if room < number:
            say(f"the disk holds {room} models, not {number}")
        yield from _ours(setting, plan, min(number, room))
        if room < number:
            break
    for number in plan.flowers:
        row = _flowers(setting, plan, number)
        yield row
        if "failed" in row:
            break


def _ours(setting: Setting, plan: Plan, number: int) -> Iterator[Row]:
    folder = setting.folder / f"memory-{number}"
    mute.lay_out(folder, number)
    log = setting.folder / "logs" / f"memory-{number}.log"
    child = Child(serve_ours, folder, plan, setting.seed, log=log)
    row: Row = {"table": TABLE, "engine": "fedspeech", "speakers": number}
    try:
        child.receive(ANSWER_LIMIT)
        idle = memory(child.pid)
        for step in (FINE_TUNING, "mean", "random", "kbest"):
            say(f"memory: {number} speakers, {step}")
            with Watch(child.pid) as watch:
                seconds = child.ask(step, ANSWER_LIMIT)
            yield {**row, "step": step, **watch.above(idle), "seconds": seconds}
        child.close()
    except Failed as reason:
        yield {**row, "failed": str(reason)}
    finally:
        shutil.rmtree(folder)


def serve_ours(channel: Channel, folder: Path, plan: Plan, seed: int) -> None:
    """Do each step for all speakers; answer with its seconds."""
    run, about = RunFolder(folder), mute.description(plan.model)
    settings = Config.model_validate({"engine": {"workers": CORES}})
    population = Population(run.models)
    tensors.write(population.generic_path, mute.generic(about, seed))
    with (
        closing(make_grid(settings, run, mute.APP)) as grid,
        closing(Journal(run.journal)) as journal,
    ):
        recorded = RecordedGrid(grid, journal, folder)
        members = mute.members(list(grid.get_node_ids()))
        recorded.know(members)
        strategy = ours.strategy_of(population, about, members, settings, journal)
        rules = {
            "mean": Mean(),
            "random": Random(plan.k),
            "kbest": KBest(plan.best, search="racing"),
        }
        bases = ours.base_models(rules, population, about, members)
        channel.answer("ready")
        for step in channel:
            started = time.perf_counter()
            if step == FINE_TUNING:
                ours.personalize(strategy, recorded, ArrayRecord(dict(population.generic())))
            else:
                bases.install(recorded, 1, step, None, [member.speaker for member in members])
            channel.answer(time.perf_counter() - started)


def _flowers(setting: Setting, plan: Plan, number: int) -> Row:
    say(f"memory: {number} speakers, Flower")
    log = setting.folder / "logs" / f"memory-flower-{number}.log"
    child = Child(serve_flower, plan, number, setting.seed, log=log)
    row: Row = {"table": TABLE, "engine": "Flower", "speakers": number, "step": "FedAvg"}
    try:
        child.receive(ANSWER_LIMIT)
        idle = memory(child.pid)
        with Watch(child.pid, plan.flowers_mib) as watch:
            seconds = child.ask("go", ANSWER_LIMIT)
        child.close()
    except Failed as reason:
        full = f"ended at {plan.flowers_mib:.0f} MiB" if watch.ended else str(reason)
        return {**row, "failed": full}
    return {**row, **watch.above(idle), "seconds": seconds}


def serve_flower(channel: Channel, plan: Plan, number: int, seed: int) -> None:
    """One round of FedAvg over all speakers; answer with its seconds."""
    server, model = ServerApp(), mute.generic(mute.description(plan.model), seed)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        flower.wait_for_nodes(grid, number)
        channel.answer("ready")
        for _ in channel:
            started = time.perf_counter()
            strategy = FedAvg(
                fraction_evaluate=0.0, min_train_nodes=number, min_available_nodes=number
            )
            strategy.start(grid, ArrayRecord(model), num_rounds=1)
            channel.answer(time.perf_counter() - started)

    run_simulation(server, mute.app, number, backend_config=flower.backend("one CPU"))


def memory(pid: int) -> dict[str, float]:
    """RssAnon and VmRSS of a process, in MiB; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    wanted = {name: text for name, text in pairs if name in ("RssAnon", "VmRSS")}
    return {name: int(text.split()[0]) / 1024 for name, text in wanted.items()}


class Watch:
    """The peaks of a process's memory within the block; above `most` MiB the process is ended."""

    def __init__(self, pid: int, most: float = float("inf")) -> None:
        self.peak: dict[str, float] = {}
        self.ended = False
        self._pid, self._most = pid, most
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        self._thread.join()

    def above(self, idle: dict[str, float]) -> Row:
        """What a row says of the peaks."""
        return {
            "anonymous above idle, MiB": self.peak["RssAnon"] - idle["RssAnon"],
            "anonymous, MiB": self.peak["RssAnon"],
            "resident, MiB": self.peak["VmRSS"],
        }

    def _look(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            for name, value in memory(self._pid).items():
                self.peak[name] = max(value, self.peak.get(name, 0.0))
            if self.peak.get("RssAnon", 0.0) > self._most and not self.ended:
                self.ended = True
                os.kill(self._pid, signal.SIGKILL)
