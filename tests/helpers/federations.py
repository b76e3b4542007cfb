"""Small federations that run for real: tone words, the tiniest model, the apps that are shipped."""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedspeech import progress
from fedspeech.config import Config
from fedspeech.run_folder import RunFolder
from fedspeech.simulation import sizing
from fedspeech.simulation.grid import SERVER_NODE
from fedspeech.simulation.launch import make_grid
from fedspeech.tensors import Tensors, distance
from server.app import app as server

HELPERS = Path(__file__).parent
CLIENT = "clients.app:app"
GENERIC_SPEAKERS = 3
LONG = {
    "rounds": 2,
    "bases": ["mean", "kbest", "quick"],
    "continue_from": {"base": "kbest", "alpha": 0.5},
    "improve": {
        "class": "flwr.serverapp.strategy:FedProx",
        "rounds": 2,
        "options": {"proximal_mu": 0.1},
    },
}
"""Two rounds of a Flower strategy first, then two rounds of personalization, with races."""
RULES = {
    "kbest": {"k": 1},
    "quick": {"class": "strategies.kbest:KBest", "k": 1, "search": "racing", "budget": 0.5},
    "dendrogram": {"k": 2},
    "random": {"k": 2},
}


def settings(corpus: Path, **sections: Any) -> Config:
    """An experiment on a tone corpus whose first 3 speakers train G; one epoch each.

    Keyword arguments are sections, merged into these; engine is in-process by default.
    """
    table: dict[str, Any] = {
        "name": "small",
        "corpus": {"path": str(corpus)},
        "partition": {
            "generic": GENERIC_SPEAKERS,
            "development": 1,
            "train": {"field": "round", "values": [1, 2, 3]},
        },
        "units": {"kind": "words"},
        "model": {"name": "tdnn-tiny"},
        "generic": {"epochs": 1, "threads": 1},
        "personal": {"epochs": 1},
        "federation": {"alphas": [0.0, 0.5, 1.0]},
        "rules": RULES,
        "engine": {"grid": "in-process"},
    }
    for section, values in sections.items():
        below = table.get(section)
        table[section] = {**below, **values} if isinstance(below, dict) else values
    return Config.model_validate(table)


def simulate(
    settings: Config,
    folder: Path,
    client: str = CLIENT,
    around: Callable[[Grid], Grid] = lambda grid: grid,
) -> Path:
    """What `fedspeech run --resume` does, with another client app, or another grid around."""
    run = RunFolder(folder)
    settings = sizing.settle(settings, run.cohort())
    run.open(settings, resume=True)
    try:
        grid = make_grid(settings, run, client)
        try:
            asked = {"experiment": str(run.config), "out": str(run.path), "resume": True}
            server(around(grid), Context(1, SERVER_NODE, {}, RecordDict(), asked))
        finally:
            grid.close()
    finally:
        run.close()
    return folder


def watch_stages(patch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """From now on: the name of each stage that ends, its total, and how much of it was done."""
    stages: list[tuple[str, int, int]] = []
    finish = progress.Stage.finish

    def note(stage: progress.Stage) -> None:
        stages.append((stage._name, stage._total, stage._done))
        finish(stage)

    patch.setattr(progress.Stage, "finish", note)
    return stages


def made(folder: Path) -> dict[str, bytes]:
    """Everything of a run that has to be repeatable: results, ledger and models, by their names."""
    names = ["results.json", "ledger.csv"]
    names += [str(path.relative_to(folder)) for path in folder.glob("models/**/*.*")]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def assert_same(one: Path, other: Path) -> None:
    """The same files with the same bytes."""
    left, right = made(one), made(other)
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []


def apart(ours: Tensors, theirs: Tensors, generic: Tensors) -> float:
    """How far two models' trained weights lie apart, as a share of how far theirs are from G."""
    trained = [name for name in generic if "running" not in name]
    one, other, begin = ({name: m[name] for name in trained} for m in (ours, theirs, generic))
    return distance(one, other) / distance(other, begin)


def results(folder: Path) -> dict[str, Any]:
    """results.json."""
    return dict(json.loads((folder / "results.json").read_text(encoding="utf-8")))


def ledger(folder: Path) -> list[dict[str, str]]:
    """The rows of ledger.csv."""
    with (folder / "ledger.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def journaled(folder: Path) -> set[str]:
    """The messages that the journal holds answers to."""
    path = folder / "journal.sqlite"
    if not path.exists():
        return set()
    database = sqlite3.connect(path)
    try:
        return {
            id for (id,) in database.execute("SELECT id FROM messages WHERE answer IS NOT NULL")
        }
    except sqlite3.OperationalError:  # not even the tables are there yet
        return set()
    finally:
        database.close()


class Around(Grid):
    """A grid around another that shows every message, both ways, to `sent` and `received`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def sent(self, message: Message) -> None:
        """A message from the server, before it goes."""

    def received(self, message: Message) -> Message:
        """A reply, as it comes."""
        return message

    def set_run(self, run: Run) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        return self.grid.run

    def create_message(self, *args: Any, **named: Any) -> Message:
        return self.grid.create_message(*args, **named)

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        for message in kept:
            self.sent(message)
        return self.grid.push_messages(kept)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.received(reply) for reply in self.grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        kept = list(messages)
        for message in kept:
            self.sent(message)
        return iter([self.received(r) for r in self.grid.send_and_receive(kept, timeout=timeout)])
