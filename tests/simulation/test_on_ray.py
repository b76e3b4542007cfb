"""Ray workers: their share of the machine, their order, and what happens when one is gone."""

import os
import signal
import time
from collections import Counter

import pytest
import ray
import torch
from federations import settings
from flwr.app import Message
from probe_client import APP

from fedspeech import protocol
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import RunError
from fedspeech.simulation.launch import launch
from fedspeech.simulation.on_ray import RayGrid
from server import generic

NODES, WORKERS = 8, 4
ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"


def test_a_worker_that_cannot_start_is_said_at_once():
    grid = RayGrid("no_such_module:app", lambda: [{}], EngineSettings(workers=1))
    try:
        with pytest.raises(RunError, match=r"^a worker cannot start: .*no_such_module"):
            ask(grid, [{}])
    finally:
        grid.close()
    assert not ray.is_initialized()


OUTSIDER = """
import sys, ray
try:
    ray.init(address=sys.argv[1], logging_level="ERROR")
    print("joined")
except Exception as error:
    print(type(error).__name__)
"""
INSIDER = """
import os, subprocess, sys
from fedspeech.config.engine import EngineSettings
from fedspeech.simulation.on_ray import RayGrid
from server import generic
import ray
grid = RayGrid("probe_client:app", lambda: [{}], EngineSettings(workers=1))
address = ray.get_runtime_context().gcs_address
token = os.environ["RAY_AUTH_TOKEN"]
for known in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, {}):
    rest = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", sys.argv[1], address]
    done = subprocess.run(command, env={**rest, **known}, capture_output=True, text=True)
    print(done.stdout.strip())
grid.close()
"""


@pytest.fixture
def no_token(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_each_process_has_a_token_of_its_own_for_its_ray(child, no_token):
    code = (
        "import os, fedspeech.simulation.on_ray; "
        "print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_AUTH_TOKEN'])"
    )
    (mode, one), (_, other) = (child(code).stdout.split() for _ in range(2))
    assert mode == "token"
    assert len(one) == 64 and one != other


@pytest.mark.faults
@pytest.mark.skipif(not ALL, reason="takes half a minute; FEDSPEECH_FAULTS=all runs it")
def test_nobody_else_on_the_network_can_join(child, no_token):
    done = child(INSIDER, OUTSIDER)
    joined, refused = done.stdout.split()
    assert joined == "joined", done.stderr
    assert refused.endswith("Error")


@pytest.fixture(scope="module")
def grid():
    """Four workers on two simulated GPUs; the grid starts Ray and ends it."""
    engine = EngineSettings(
        workers=WORKERS, gpus_per_worker=0.5, simulated_gpus=2, cpus_per_worker=2, retries=1
    )
    assert not ray.is_initialized()
    made = RayGrid(APP, lambda: [{}] * NODES, engine)
    yield made
    made.close()
    assert not ray.is_initialized()


def until_all_are_there(grid) -> None:
    """Workers that have not started yet get no messages."""
    while grid._running:
        grid._collect()
    assert len(grid._idle) == WORKERS


def ask(grid, texts, **arrays) -> list[Message]:
    nodes = grid.get_node_ids()
    messages = [
        Message(protocol.content(text, **arrays), node, "query", group_id="1")
        for node, text in zip(nodes, texts, strict=False)
    ]
    return list(grid.send_and_receive(messages))


def said(replies) -> list[dict]:
    return [protocol.text(reply.content) for reply in replies]


def test_each_worker_sees_its_own_gpu(grid):
    until_all_are_there(grid)
    # Long enough that no worker gets a second message before all have one.
    answers = said(ask(grid, [{"seconds": 1.0}] * WORKERS))
    gpus = {answer["process"]: answer["gpus"] for answer in answers}
    assert len(gpus) == WORKERS
    assert Counter(gpus.values()) == {"0": 2, "1": 2}
    assert {answer["threads"] for answer in answers} == {2}


def test_replies_come_in_the_order_of_the_messages(grid):
    texts = [{"number": i, "seconds": 0.3 if i % 3 == 0 else 0.0} for i in range(NODES)]
    replies = ask(grid, texts)
    assert [answer["number"] for answer in said(replies)] == list(range(NODES))
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()


def test_what_workers_warn_of_is_told_once(grid, caplog):
    """Ray keeps what they log to itself."""
    warnings = ["one", "other", "", "one", "one", "other", "one", "one"]
    for _ in range(2):
        ask(grid, [{"warns": each, "seconds": 0.1} for each in warnings])
    found = [record.getMessage() for record in caplog.records if record.name == "fedspeech"]
    assert sorted(found) == ["of one", "of other"]


@pytest.fixture
def handed(grid, monkeypatch) -> list[int]:
    """How many messages the workers are handed at a time, from now on."""
    hand, sizes = grid._hand, []
    monkeypatch.setattr(
        grid, "_hand", lambda worker, numbers: (sizes.append(len(numbers)), hand(worker, numbers))
    )
    return sizes


def ask_many(grid, count: int, **text) -> list[Message]:
    nodes = grid.get_node_ids()
    texts = [{"number": number, **text} for number in range(count)]
    return list(
        grid.send_and_receive(
            Message(protocol.content(text), nodes[i % NODES], "query", group_id="1")
            for i, text in enumerate(texts)
        )
    )


def test_quick_messages_travel_many_at_a_time_and_slow_ones_singly(grid, handed):
    for _ in range(3):
        replies = ask_many(grid, 400)
        assert [answer["number"] for answer in said(replies)] == list(range(400))
    handed.clear()
    ask_many(grid, 400)
    assert sum(handed) >= 400  # a worker on a busy machine may break off, and the rest goes again
    assert len(handed) < 200
    ask_many(grid, WORKERS * 2, seconds=0.1)
    handed.clear()
    ask_many(grid, WORKERS * 2, seconds=0.1)
    assert handed == [1] * WORKERS * 2


@pytest.fixture
def in_fours(grid, monkeypatch) -> None:
    """Messages travel four at a time, whatever was learned of them."""
    monkeypatch.setattr(grid._pace, "size", lambda kind: 4)


def test_a_slow_message_among_quick_ones_holds_up_nobody(grid, handed, in_fours):
    """Its worker hands in what it has; what came after it in the batch goes to others."""
    nodes = grid.get_node_ids()
    texts = [{"number": i, "seconds": 0.5 if i == 1 else 0.0} for i in range(NODES * 2)]
    made = [
        Message(protocol.content(text), nodes[i % NODES], "query", group_id="1")
        for i, text in enumerate(texts)
    ]
    answers = said(grid.send_and_receive(made))
    assert handed[0] == 4
    assert [answer["number"] for answer in answers] == list(range(len(made)))
    first = [answer["process"] for answer in answers[:4]]
    assert first[0] == first[1]
    assert sum(handed) > len(made)


@pytest.mark.faults
def test_a_message_that_kills_its_worker_does_not_fail_its_neighbours(grid, handed, in_fours):
    before = grid.deaths
    nodes = grid.get_node_ids()
    texts = [{"number": i, "die": i == 2} for i in range(NODES * 2)]
    replies = list(
        grid.send_and_receive(
            Message(protocol.content(text), nodes[i % NODES], "query", group_id="1")
            for i, text in enumerate(texts)
        )
    )
    assert max(handed) == 4
    assert [reply.has_error() for reply in replies] == [i == 2 for i in range(len(texts))]
    assert replies[2].error.reason == "its worker died 2 times"
    # Twice alone; and once in company, unless a slow worker broke its batch off before.
    assert grid.deaths - before in (2, 3)


def test_tensors_travel_once_and_whole(grid, monkeypatch):
    put, counted = ray.put, []
    monkeypatch.setattr(ray, "put", lambda value: counted.append(value) or put(value))
    model = protocol.pack({"x": torch.arange(1000.0)})
    answers = said(ask(grid, [{}] * NODES, model=model))
    assert len(counted) == 1
    assert [answer["sums"] for answer in answers] == [{"model": 499500.0}] * NODES
    other = protocol.pack({"x": torch.ones(7)})
    assert said(ask(grid, [{}], model=other))[0]["sums"] == {"model": 7.0}


@pytest.mark.faults
def test_a_worker_that_is_killed_while_idle_is_replaced(grid):
    until_all_are_there(grid)
    before = grid.deaths
    processes = {answer["process"] for answer in said(ask(grid, [{"seconds": 0.5}] * WORKERS))}
    os.kill(min(processes), signal.SIGKILL)
    answers = said(ask(grid, [{"seconds": 0.5}] * WORKERS))
    assert len({answer["process"] for answer in answers} & processes) == WORKERS - 1
    assert grid.deaths == before + 1


@pytest.fixture
def impatient(grid, monkeypatch):
    """The same grid; a message has half a second."""
    until_all_are_there(grid)
    monkeypatch.setattr(grid, "_engine", grid._engine.model_copy(update={"message_seconds": 0.5}))
    return grid


@pytest.mark.faults
def test_a_worker_that_hangs_is_killed(impatient):
    before, started = impatient.deaths, time.monotonic()
    replies = ask(impatient, [{"seconds": 1000} if i == 3 else {} for i in range(NODES)])
    assert time.monotonic() - started < 60
    assert [reply.has_error() for reply in replies] == [i == 3 for i in range(NODES)]
    assert replies[3].error.reason == "its worker died 2 times (no answer in 0.5 s)"
    assert impatient.deaths - before in (2, 3)  # the first time it may have been in company


def test_an_answer_that_waited_for_the_server_came_in_time(impatient):
    before = impatient.deaths
    ask(impatient, [{"seconds": 0.1}] * NODES)  # from here on they travel singly, and at once
    nodes = impatient.get_node_ids()
    texts = [{"number": i, "seconds": 0.2} for i in range(WORKERS)]
    ids = impatient.push_messages(
        Message(protocol.content(text), node, "query", group_id="1")
        for text, node in zip(texts, nodes, strict=False)
    )
    time.sleep(1.5)  # the server is busy
    waiting = set(ids)
    while waiting:
        for reply in impatient.pull_messages(sorted(waiting)):
            waiting.remove(reply.metadata.reply_to_message_id)
            assert not reply.has_error()
    assert impatient.deaths == before


@pytest.mark.faults
def test_an_answer_that_cannot_be_sent_does_not_block_a_worker(grid):
    replies = ask(grid, [{"unreadable": True}, *[{}] * (NODES - 1)])
    assert replies[0].error.reason == "its worker died 2 times"
    assert not any(reply.has_error() for reply in replies[1:])
    until_all_are_there(grid)
    processes = {answer["process"] for answer in said(ask(grid, [{"seconds": 1.0}] * WORKERS))}
    assert len(processes) == WORKERS


def test_more_gpus_than_there_are_is_said_before_the_corpus_is_read(tmp_path, grid):
    """The grid's Ray has two: three workers with one each are one too many."""
    engine = {"grid": "ray", "workers": 3, "gpus_per_worker": 1}
    with pytest.raises(RunError) as told:
        launch(settings(tmp_path / "no-corpus", engine=engine), tmp_path / "run", resume=False)
    assert str(told.value) == (
        "engine.workers: 3 workers with 1 GPUs each want 3 GPUs, Ray has 2; "
        "set engine.simulated_gpus or fewer workers"
    )
    assert not (tmp_path / "run").exists()


def test_shares_of_gpus_that_do_not_add_up_are_said(tmp_path, grid):
    """0.6 of a GPU is free on neither of the two when two workers have the same."""
    engine = {"grid": "ray", "workers": 3, "gpus_per_worker": 0.6}
    with pytest.raises(RunError) as told:
        launch(settings(tmp_path / "no-corpus", engine=engine), tmp_path / "run", resume=False)
    assert str(told.value) == (
        "engine.workers: 3 workers with 1 processors and 0.6 GPUs each, Ray has room for 2: each "
        "lies on one node, and a share of a GPU on one GPU; set fewer workers"
    )


def test_workers_start_before_g_trains(tmp_path, corpus, grid, monkeypatch):
    order, start = [], RayGrid._start_worker

    def note_worker(self):
        order.append("worker")
        start(self)

    def train(*settings):
        order.append("G")
        raise RunError("that is enough")

    monkeypatch.setattr(RayGrid, "_start_worker", note_worker)
    monkeypatch.setattr(generic, "obtain", train)
    engine = {"grid": "ray", "workers": 2}
    with pytest.raises(RunError, match="that is enough"):
        launch(settings(corpus, engine=engine), tmp_path / "run", resume=False)
    assert order == ["worker", "worker", "G"]
