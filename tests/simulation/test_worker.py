"""What a worker does by itself, without Ray."""

import shutil
import time

from flwr.app import Context, Message, RecordDict

from fedspeech import protocol
from fedspeech.simulation.grid import SimulatedGrid
from fedspeech.simulation.worker import QUICK_SECONDS, Worker

FIRST = """
import json, shutil, sys
from pathlib import Path
from fedspeech.simulation.grid import FIRST_NODE
from fedspeech.simulation.in_process import InProcessGrid
from fedspeech.simulation.worker import Worker
from fedspeech.config.engine import EngineSettings
from fedspeech import protocol, tensors

device, generic = map(Path, sys.argv[1:])
node = {"device": str(device), "threads": 1}
grid = InProcessGrid("clients.app:app", lambda: [node], EngineSettings())
state = json.loads((device / "models" / "state.json").read_text())
shutil.rmtree(device / "models")
asked = {**state["asked"], "description": state["description"], "generation": state["generic"]}
content = protocol.content(asked, generic=protocol.pack(tensors.read(generic)))
message = grid.create_message(content, protocol.PERSONALIZE, FIRST_NODE, "1")

worker = Worker("clients.app:app", 1)
before = set(sys.modules)
((reply, _),) = worker.answer([(message, {}, grid._contexts[FIRST_NODE])]).replies
print(protocol.text(reply.content)["losses"] != [])
print(len(set(sys.modules) - before))
"""


def test_a_workers_first_fine_tuning_has_nothing_left_to_import(child, undisturbed, tmp_path):
    """Importing what PyTorch's optimizers want takes seconds: a worker does it while it starts."""
    device = next(path.parent for path in sorted(undisturbed.glob("devices/*/device.json")))
    copy = shutil.copytree(device, tmp_path / "devices" / device.name)
    done = child(FIRST, copy, undisturbed / "models" / "generic.safetensors")
    trained, modules = done.stdout.split() or [done.stderr, ""]
    assert trained == "True"
    assert int(modules) < 50


class Nodes(SimulatedGrid):
    """Only what makes messages and contexts."""

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError


def batch(*seconds: float) -> list[tuple[Message, dict, Context]]:
    """Messages that take so long, each to a node of its own."""
    grid = Nodes(lambda: [{}] * len(seconds))
    return [
        (
            grid.create_message(protocol.content({"seconds": each}), "query", node, "1"),
            {},
            Context(1, node, {}, RecordDict(), {}),
        )
        for node, each in zip(grid.get_node_ids(), seconds, strict=True)
    ]


def test_what_is_warned_of_comes_with_the_answers(capfd):
    worker, asked = Worker("probe_client:app", 1), batch(0, 0, 0)
    for (message, _, _), warns in zip(asked, ("a lattice", "", "a lattice"), strict=True):
        message.content = protocol.content({"warns": warns})
    assert worker.answer(asked).warned == ["of a lattice"] * 2
    assert worker.answer(batch(0)).warned == []
    assert "lattice" not in capfd.readouterr().err


def test_a_batch_is_broken_off_after_the_first_slow_message():
    worker = Worker("probe_client:app", 1)
    quick = worker.answer(batch(0, 0, 0))
    assert len(quick.replies) == 3
    assert quick.seconds < QUICK_SECONDS
    started = time.monotonic()
    slow = worker.answer(batch(0, 0.2, 0, 0.2))
    assert len(slow.replies) == 2
    assert 0.2 <= slow.seconds <= time.monotonic() - started < 0.4
    assert len(worker.answer(batch(0.2, 0.2)).replies) == 1
    assert worker.answer([]).replies == []
