"""Apple's pfl on all cores: one single-threaded process per core, as its documentation advises."""

import importlib
import multiprocessing
import os
import socket
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from experiments.benchmarks.harness import Channel
from experiments.benchmarks.workload import Workload


def serve(channel: Channel, folder: Path, workers: int) -> None:
    """Answer each job with the seconds that it took."""
    addresses = _free_addresses(workers)
    context = multiprocessing.get_context("spawn")
    others = []
    for rank in range(1, workers):
        here, there = context.Pipe()
        # pfl takes a process of any other name for one of its data loaders.
        process = context.Process(
            target=_follow, args=(there, folder, rank, addresses), name="MainProcess", daemon=True
        )
        process.start()
        others.append(here)
    gather = _connect(0, addresses).gather
    channel.answer("ready")
    for job in channel:
        started = perf_counter()
        for other in others:
            other.send(job)
        gather(Workload(folder), job)
        channel.answer(perf_counter() - started)
    for other in others:
        other.send(None)


def _follow(
    connection: "Connection[Any, Any]", folder: Path, rank: int, addresses: list[str]
) -> None:
    gather = _connect(rank, addresses).gather
    while (job := connection.recv()) is not None:
        gather(Workload(folder), job)


def _connect(rank: int, addresses: list[str]) -> Any:
    """The users' side of pfl, once all processes are there."""
    torch.set_num_threads(1)
    if len(addresses) > 1:
        os.environ["PFL_WORKER_RANK"] = str(rank)
        os.environ["PFL_WORKER_ADDRESSES"] = ",".join(addresses)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return importlib.import_module("experiments.benchmarks.contestants.pfl_users")


def _free_addresses(number: int) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
