"""Ray: started here, or joined where it runs already."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from federations import assert_same, settings
from nodes import Node, cluster
from ray.cluster_utils import Cluster

from fedspeech import config
from fedspeech.cluster import joining
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import RunError

BIN = Path(sys.executable).parent


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    with cluster(Node(), Node()) as found:
        yield found


def test_workers_on_the_nodes_of_a_cluster(corpus, undisturbed, two_nodes, tmp_path):
    """Each node has room for one of the two workers; the cluster outlives the run."""
    engine = {"grid": "ray", "workers": 2, "ray_address": two_nodes.address}
    file = tmp_path / "small.toml"
    file.write_text(config.dump(settings(corpus, engine=engine)))
    command = [BIN / "fedspeech", "run", file, "--out", tmp_path / "run"]
    # Not from the folder that the nodes were started in: what they read lies at absolute paths.
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", undisturbed)
    nodes = two_nodes.list_all_nodes()
    assert len(nodes) == 2 and not any(node.dead_processes() for node in nodes)

    engine["workers"] = 3
    file.write_text(config.dump(settings(corpus, engine=engine)))
    command[-1] = tmp_path / "other"
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 2
    assert done.stderr == (
        "fedspeech: engine.workers: 3 workers with 1 processors each want 3 processors, Ray has 2; "
        "set fewer workers\n"
    )


def test_a_node_that_does_not_start_in_time_is_told(monkeypatch):
    """As Ray says it."""

    def late(**options):
        raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(joining.ray, "init", late)
    with pytest.raises(RunError) as told:
        joining.connect(EngineSettings())
    assert str(told.value) == (
        "Ray cannot be started, perhaps beside too much else: The current node timed out during "
        "startup."
    )


def test_nobody_at_the_address_is_said_at_once():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(RunError) as told:
            joining.connect(EngineSettings(ray_address=address))
    assert str(told.value) == (
        f"engine.ray_address = '{address}': cannot join Ray there: [Errno 111] Connection refused"
    )


@pytest.mark.parametrize("speaks", ["nothing", "gRPC"])
def test_who_is_there_but_is_not_ray_is_said_at_once(monkeypatch, speaks):
    monkeypatch.setattr(joining, "CONNECT_SECONDS", 1.0)
    with ExitStack() as stack:
        if speaks == "gRPC":
            server = grpc.server(ThreadPoolExecutor(1))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(server.stop, None)
        else:
            other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = other.getsockname()[1]
        with pytest.raises(RunError, match="cannot join Ray there: who answers is not Ray's head"):
            joining.connect(EngineSettings(ray_address=f"127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("nodes", "engine", "places"),
    [
        ([(8, 2)], {"workers": 3, "gpus_per_worker": 0.6}, 2),
        ([(8, 3)], {"workers": 3, "gpus_per_worker": 0.3333}, 8),
        ([(20, 3)], {"workers": 3, "gpus_per_worker": 0.3333}, 9),
        ([(20, 1)], {"workers": 10, "gpus_per_worker": 0.1}, 10),
        ([(8, 3), (8, 1)], {"workers": 2, "gpus_per_worker": 2.0}, 1),
        ([(8, 4), (8, 2)], {"workers": 3, "gpus_per_worker": 2.0}, 3),
        ([(3, 0), (3, 0)], {"workers": 3, "cpus_per_worker": 2}, 2),
        ([(1, 4), (8, 0)], {"workers": 2, "gpus_per_worker": 1.0}, 1),  # not where the GPUs are
    ],
)
def test_workers_have_to_find_room_on_the_nodes(monkeypatch, nodes, engine, places):
    found = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}
    sums = {"CPU": sum(c for c, _ in nodes), "GPU": sum(g for _, g in nodes)}
    monkeypatch.setattr(joining.ray, "nodes", lambda: [*found, gone])
    monkeypatch.setattr(joining.ray, "cluster_resources", lambda: sums)
    asked = EngineSettings(**engine)
    if places >= asked.workers:
        joining._check_what_is_there(asked, "engine.workers")
        asked = asked.model_copy(update={"workers": places + 1})
    with pytest.raises(RunError, match=rf"Ray has (room for {places}|[0-9]+[:;])"):
        joining._check_what_is_there(asked, "engine.workers")


TOKENS = """
import os, fedspeech.cluster as cluster
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
before = [os.environ.get(name) for name in names]
cluster.forget_token()
for name, value in zip(names, before):
    print(name, value == "mine", value is not None, os.environ.get(name) == value)
"""


LATE = """
import fedspeech.cluster as cluster
from fedspeech.cluster import joining
from fedspeech.errors import RunError
from fedspeech.config.engine import EngineSettings
address = "127.0.0.1:1"
cluster.prepare(address)
try:
    joining.connect(EngineSettings(ray_address=address))
except RunError:
    joining.connect(EngineSettings(workers=1))

class Worker:
    def answer(self):
        return "answered"

import ray
print(ray.get(ray.remote(Worker).remote().answer.remote()))
"""


def test_workers_answer_after_another_ray_could_not_be_joined(child, monkeypatch):
    """Also where this process has imported Ray before, with its token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for before in ("", "import fedspeech.cluster.joining\n"):
        done = child(before + LATE)
        assert done.stdout == "answered\n", done.stderr


def test_a_cluster_is_joined_with_its_own_token(child, monkeypatch):
    """The token that this process made for itself is forgotten; the user's is not."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert child(TOKENS).stdout.splitlines() == [
        "RAY_AUTH_MODE False True False",
        "RAY_AUTH_TOKEN False True False",
    ]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert child(TOKENS).stdout.splitlines() == [
        "RAY_AUTH_MODE False True False",
        "RAY_AUTH_TOKEN True True True",
    ]
