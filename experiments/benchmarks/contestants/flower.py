"""Flower's stock simulation: `run_simulation` on its Ray backend.

`how` is "our client" or "quickstart". The replies stay in memory, nothing is journaled or written:
what a server app has to do with them is left out, to Flower's advantage.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from experiments.benchmarks.contestants import flower_clients
from experiments.benchmarks.harness import Channel
from experiments.benchmarks.workload import Job, Workload
from fedspeech import protocol
from fedspeech.tensors import sha256

RESOURCES = {"stock": {}, "one CPU": {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}}
"""Backend settings: what Flower takes by itself (2 CPUs for a client), and a client per core."""


def serve(channel: Channel, folder: Path, resources: str) -> None:
    """Answer each job with the seconds that it took."""
    os.environ[flower_clients.FOLDER] = str(folder)
    held = Workload(folder)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = wait_for_nodes(grid, len(held.devices))
        exchange(grid, [Message(protocol.content({}), nodes[0], protocol.DESCRIBE)])
        channel.answer("ready")
        for job in channel:
            started = time.perf_counter()
            make = quickstart_messages if job.how == "quickstart" else our_messages
            exchange(grid, make(held, job, nodes[: job.speakers]))
            channel.answer(time.perf_counter() - started)

    run_simulation(server, flower_clients.app, len(held.devices), backend_config=backend(resources))


def backend(resources: str) -> dict[str, dict[str, int | float | str | bool]]:
    """A fresh copy of the backend's settings; Flower adds its own to what it is given."""
    return {name: dict(values) for name, values in RESOURCES[resources].items()}


def wait_for_nodes(grid: Grid, number: int) -> list[int]:
    """All nodes; they register while the server app starts."""
    while len(nodes := sorted(grid.get_node_ids())) < number:
        time.sleep(0.05)
    return nodes


def exchange(grid: Grid, messages: Iterable[Message]) -> list[Message]:
    """All replies. Raises RuntimeError where one is an error."""
    replies = list(grid.send_and_receive(messages))
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
    return replies


def our_messages(held: Workload, job: Job, nodes: Iterable[int]) -> list[Message]:
    """`train.personalize`, as our strategy sends it."""
    generic = held.generic(job.size)
    said = {
        "description": held.description(job.size).to_json(),
        "generation": sha256(generic),
        "round": 1,
        "seed": job.seed,
        "settings": job.settings().model_dump(mode="json"),
        "start": None,
    }
    content = protocol.content(said, generic=protocol.pack(generic))
    return [Message(content, node, protocol.PERSONALIZE) for node in nodes]


def quickstart_messages(held: Workload, job: Job, nodes: Iterable[int]) -> list[Message]:
    """What a Flower strategy sends in its round: the model and a configuration."""
    config = ConfigRecord({"size": job.size, "local-epochs": job.epochs})
    content = RecordDict({"arrays": ArrayRecord(held.generic(job.size)), "config": config})
    return [Message(content, node, flower_clients.QUICKSTART) for node in nodes]
