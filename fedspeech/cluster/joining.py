"""Ray itself: started for this run on this machine, or joined where it runs already."""

import logging
import os
import socket
import warnings
from collections.abc import Mapping
from typing import Any

import grpc
import ray

from fedspeech.config.engine import GPU_STEPS, EngineSettings, RaySettings
from fedspeech.errors import RunError

LOG = logging.getLogger(__name__)
OBJECT_STORE_BYTES = 2**30
"""Ray spills to disk what does not fit."""
CONNECT_SECONDS = 10.0
"""How long to knock at the address of a Ray that is to be joined."""
ASKED_OF_THE_HEAD = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def connect(engine: EngineSettings, counted: str = "engine.workers") -> bool:
    """Join Ray where the settings say so, else start it; nothing where this process has it already.

    Whether there is something to leave at the end. Raises RunError where there is no Ray to join,
    none starts, or it has less than the workers want; `counted` is the setting that says how many
    there are.
    """
    ours = not ray.is_initialized()
    if ours and engine.ray_address is not None:
        _join(engine.ray_address)
    elif ours:
        _start(engine)
    try:
        _check_what_is_there(engine, counted)
    except RunError:
        leave(ours)
        raise
    return ours


def leave(ours: bool) -> None:
    """End what `connect` began: a Ray that was joined goes on without us."""
    if ours:
        ray.shutdown()


def try_out() -> None:
    """Start Ray with one worker, let it answer, end it. Raises what Ray raises."""

    def double(number: int) -> int:
        return 2 * number

    ours = connect(EngineSettings(workers=1))
    try:
        assert ray.get(ray.remote(double).remote(21)) == 42
    finally:
        leave(ours)


def _start(engine: EngineSettings) -> None:
    try:
        _init(
            address="local",  # not what somebody else started on this machine
            num_cpus=engine.workers * engine.cpus_per_worker,
            num_gpus=engine.simulated_gpus or None,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception as error:  # Ray has none of its own for a node that is not there in time
        said = str(error).strip().splitlines()[0]
        raise RunError(f"Ray cannot be started, perhaps beside too much else: {said}") from None


def _join(address: str) -> None:
    try:
        _knock(address)
        _init(address=address)
    except (OSError, OverflowError, RuntimeError, ray.exceptions.RayError) as error:
        said = str(error).strip().splitlines()[0]
        raise RunError(f"engine.ray_address = {address!r}: cannot join Ray there: {said}") from None


def _knock(address: str) -> None:
    """Raise OSError where somebody else than Ray's head answers, or nobody.

    Ray itself would try for many minutes.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray has the certificates
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(ASKED_OF_THE_HEAD)
        try:
            ask(b"", timeout=CONNECT_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise OSError("who answers is not Ray's head") from None


def _init(**options: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        shown = LOG.isEnabledFor(logging.INFO)
        level = logging.INFO if shown else logging.ERROR
        ray.init(log_to_driver=shown, logging_level=level, **options)


def _check_what_is_there(engine: EngineSettings, counted: str) -> None:
    there, who = ray.cluster_resources(), counted.rpartition(".")[2]
    for resource, name, each, hint in (
        ("CPU", "processors", engine.cpus_per_worker, "set"),
        ("GPU", "GPUs", engine.gpus_per_worker, "set engine.simulated_gpus or"),
    ):
        wanted, found = engine.workers * each, there.get(resource, 0)
        if wanted > found:
            raise RunError(
                f"{counted}: {engine.workers} {who} with {each:g} {name} each want {wanted:g} "
                f"{name}, Ray has {found:g}; {hint} fewer {who}"
            )
    room = sum(places(engine))
    if engine.workers > room:
        raise RunError(
            f"{counted}: {engine.workers} {who} with {engine.cpus_per_worker} processors and "
            f"{engine.gpus_per_worker:g} GPUs each, Ray has room for {room}: each lies on one "
            f"node, and a share of a GPU on one GPU; set fewer {who}"
        )


def places(engine: RaySettings) -> list[int]:
    """How many workers each node that is alive has room for."""
    return [_places(engine, node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _places(engine: RaySettings, node: Mapping[str, float]) -> int:
    """How many workers a node has room for."""
    by_cpus = int(node.get("CPU", 0) // engine.cpus_per_worker)
    if not engine.gpus_per_worker:
        return by_cpus
    whole, each = int(node.get("GPU", 0)), round(engine.gpus_per_worker * GPU_STEPS)
    by_gpus = whole * (GPU_STEPS // each) if each < GPU_STEPS else whole * GPU_STEPS // each
    return min(by_cpus, by_gpus)
