"""What a round costs where the clients do nothing: our engine with its journal, and Flower's."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from experiments.benchmarks.contestants import CORES, flower, mute
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Channel, Child, Failed, Row, Setting, say, spread
from fedspeech import protocol
from fedspeech.config import Config
from fedspeech.run_folder import RunFolder
from fedspeech.simulation.launch import make_grid
from server.journal import Journal
from server.recorded_grid import RecordedGrid

TABLE = "A round of clients that do nothing"
LIMIT = 600.0
ANSWER_LIMIT = 120.0
PANELS = (Panel(TABLE, "clients", "seconds", ("engine",), logarithmic=True),)


OURS = "fedspeech, with its journal"
ENGINES = {OURS: "", "Flower, one CPU for a client": "one CPU", "Flower as it comes": "stock"}
"""Names, and what settings Flower's backend has."""


@dataclass(frozen=True)
class Plan:
    """How many clients, how often each round is repeated, and on which engines."""

    clients: tuple[int, ...]
    repeats: int
    engines: tuple[str, ...] = tuple(ENGINES)


FULL = Plan((10, 100, 1000), 5)
QUICK = Plan((10, 100, 1000), 2, tuple(ENGINES)[:2])


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each engine and number of clients."""
    folder, most = setting.folder / "overhead", max(plan.clients)
    mute.lay_out(folder, most)
    for number, name in enumerate(plan.engines):
        say(f"{name}: up to {most} clients")
        log = setting.folder / "logs" / f"{number}.log"
        if name == OURS:
            child = Child(serve_ours, folder, most, log=log)
        else:
            child = Child(serve_flower, ENGINES[name], most, log=log)
        row: Row = {"table": TABLE, "engine": name}
        try:
            child.receive(ANSWER_LIMIT)
            start_up = child.age
            for clients in plan.clients:
                child.ask(clients, ANSWER_LIMIT)  # the first round of a size warms up
                seconds = [child.ask(clients, ANSWER_LIMIT) for _ in range(plan.repeats)]
                row |= {"clients": clients, "seconds": spread(seconds), "start-up, s": start_up}
                yield dict(row)
            child.close()
        except Failed as reason:
            yield {"table": TABLE, "engine": name, "failed": str(reason)}


def serve_ours(channel: Channel, folder: Path, most: int) -> None:
    """Answer each number of clients with the seconds of a round."""
    run = RunFolder(folder)
    settings = Config.model_validate({"engine": {"workers": CORES}})
    with (
        closing(make_grid(settings, run, mute.APP)) as grid,
        closing(Journal(run.journal)) as journal,
    ):
        recorded = RecordedGrid(grid, journal, folder)
        recorded.know(mute.members(list(grid.get_node_ids())))
        nodes = list(recorded.get_node_ids())[:most]
        # The journal remembers what a round was answered, so each one has a number of its own.
        _answer_rounds(channel, recorded, nodes)


def serve_flower(channel: Channel, resources: str, most: int) -> None:
    """The same on Flower's own simulation."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        _answer_rounds(channel, grid, flower.wait_for_nodes(grid, most))

    run_simulation(server, mute.app, most, backend_config=flower.backend(resources))


def _answer_rounds(channel: Channel, grid: Grid, nodes: list[int]) -> None:
    flower.exchange(grid, _messages(nodes[:1], 0))
    channel.answer("ready")
    for number, clients in enumerate(channel, 1):
        started = time.perf_counter()
        flower.exchange(grid, _messages(nodes[:clients], number))
        channel.answer(time.perf_counter() - started)


def _messages(nodes: list[int], number: int) -> list[Message]:
    return [Message(protocol.content({}), node, mute.NOOP, group_id=str(number)) for node in nodes]
