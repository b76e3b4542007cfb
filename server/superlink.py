"""A run at a SuperLink, with this process as its server app.

Flower has a SuperLink's executor start server apps. Here `fedspeech run` starts the run, claims its
task itself and stays what it is: its progress is in the terminal, its folder where it was asked
for, and `--resume` begins another run at the SuperLink that goes on with the same journal. What
Flower keeps of a run is a name for its messages and nothing else.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import httpx
from flwr.cli.build import build_fab_from_files
from flwr.cli.flower_config import read_flower_config, read_superlink_connection
from flwr.cli.typing import SuperLinkConnection
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, StartRunRequest, StopRunRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedspeech import __version__
from fedspeech.errors import ConfigError, RunError
from server.patient_grid import PatientGrid

SECONDS = 60.0
"""That a SuperLink may be away before the run is given up."""
CLAIM_SECONDS = 10.0
POLL_SECONDS = 0.2
MOST_DELAY = 5.0

BUNDLE = f"""
[project]
name = "fedspeech"
version = "{__version__}"

[tool.flwr.app]
publisher = "fedspeech"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
"""
"""What Flower wants a run to bring. There is no code in it: server and boxes run what they have."""


@contextmanager
def joined(name: str) -> Iterator[HttpGrid]:
    """A Grid to the boxes of a SuperLink, for one run that ends with the block.

    `name` is a connection of Flower's configuration. Raises ConfigError where there is none or it
    cannot be used, RunError where the SuperLink does not answer as it should.
    """
    connection = _connection(name)
    with told(f"{name} ({connection.address})", begun=False):
        run_id = _start(connection)
        try:
            grid = _claim(connection)
        except BaseException:
            _stop(connection, run_id)
            raise
    sender = HeartbeatSender(_beat(grid))
    sender.start()
    ended, why = SubStatus.FAILED, "the server app was stopped"
    try:
        yield grid
        ended, why = SubStatus.COMPLETED, ""
    except Exception as error:
        why = str(error)
        raise
    finally:
        _leave(grid, sender, ended, why)


@contextmanager
def told(name: str, begun: bool = True) -> Iterator[None]:
    """Say in one line what went wrong between here and a SuperLink. Raises RunError.

    `begun`: whether a run is underway there.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        refused = FlowerError.from_json(error.response.text)
        said = refused.message if refused else f"HTTP status {error.response.status_code}"
        if refused is None and error.response.status_code == httpx.codes.NOT_FOUND:
            said += "; no SuperLink, or the proxy before it, which is for boxes alone"
        if error.response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            said = f"it does not know this run any more ({said}); go on with --resume"
        raise RunError(f"SuperLink {name}: {said}") from None
    except httpx.TransportError as error:
        why = f"SuperLink {name}: no connection ({error or type(error).__name__})"
        kept = "; what is finished is kept, go on with --resume" if begun else ""
        raise RunError(why + kept) from None


def nodes(grid: HttpGrid) -> list[NodeInfo]:
    """All boxes that were ever registered at a grid's SuperLink, whether they are there or not."""
    control = _controls(grid._addr, grid._insecure, grid._cert)
    try:
        return list(_patience().invoke(control.ListNodes, ListNodesRequest()).nodes_info)
    finally:
        control.close()


def _connection(name: str) -> SuperLinkConnection:
    table, path = read_flower_config()
    known = [key for key, value in table.get("superlink", {}).items() if isinstance(value, dict)]
    if name not in known:
        raise ConfigError(
            f"deployment {name}: no [superlink.{name}] in {path}; there is {', '.join(known)}"
        )
    try:
        found = read_superlink_connection(name)
    except click.ClickException as error:
        raise ConfigError(f"deployment {name}: {error.message}") from None
    if found.address is None or found.address.startswith(":"):
        raise ConfigError(
            f"deployment {name}: expected the address of a SuperLink in Flower's configuration, "
            f"found {found.address or 'a simulation'}"
        )
    return found


def _certificates(connection: SuperLinkConnection) -> bytes | None:
    if connection.root_certificates is None:
        return None
    try:
        return Path(connection.root_certificates).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"deployment {connection.name}: root-certificates: {connection.root_certificates}: "
            f"{error.strerror}"
        ) from None


def _patience() -> RetryInvoker:
    """Flower's own tries for ever, and ends the process where a run is not known any more."""
    delays = lambda: exponential(max_delay=MOST_DELAY)  # noqa: E731
    errors = httpx.TransportError, httpx.HTTPStatusError
    return RetryInvoker(delays, errors, max_tries=None, max_time=SECONDS, should_giveup=_is_final)


def _is_final(error: Exception) -> bool:
    """Whether the SuperLink means it: its own faults pass, such as a database that was busy."""
    return isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error


def _control(connection: SuperLinkConnection) -> ControlHttpClient:
    return _controls(connection.address, connection.insecure, _certificates(connection))


def _controls(address: str | None, insecure: bool, certificates: bytes | None) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=insecure,
        root_certificates=certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


def _start(connection: SuperLinkConnection) -> int:
    bundle, _ = build_fab_from_files({"pyproject.toml": BUNDLE.encode()})
    fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
    control = _control(connection)
    try:
        answer = control.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
    finally:
        control.close()
    return int(answer.run_id)


def _stop(connection: SuperLinkConnection, run_id: int) -> None:
    control = _control(connection)
    with suppress(httpx.HTTPError):
        control.StopRun(StopRunRequest(run_id=run_id))
    control.close()


def _claim(connection: SuperLinkConnection) -> HttpGrid:
    """The Grid of the run that was just started.

    Of two that start at the same moment each may get the other's: nothing depends on which.
    """
    address, certificates = connection.address, _certificates(connection)
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=connection.insecure,
        root_certificates=certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
        retry_invoker=_patience(),
    )
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    deadline = time.monotonic() + CLAIM_SECONDS
    try:
        while not (token := client.AcquireTask(wanted).token):
            if time.monotonic() > deadline:
                raise RunError(
                    f"SuperLink {connection.name}: its own executor has taken the run; start it "
                    f"with --isolation process, or use `flwr run . {connection.name}`"
                )
            time.sleep(POLL_SECONDS)
    finally:
        client.close()
    grid = PatientGrid(address, connection.insecure, certificates, token)
    grid._retry_invoker = _patience()
    given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    grid.set_run(run_from_proto(given.run))
    return grid


def _beat(grid: HttpGrid) -> Callable[[], bool]:
    """A sign of life; where it is refused, the next message says so, and not this thread."""
    send = make_task_heartbeat_fn_http(grid._runtime_client)

    def beat() -> bool:
        try:
            return bool(send())
        except httpx.HTTPError:
            return True

    return beat


def _leave(grid: HttpGrid, sender: HeartbeatSender, ended: str, why: str) -> None:
    """Say how it ended, to a SuperLink that may be gone."""
    grid._retry_invoker.max_time = POLL_SECONDS
    with suppress(httpx.HTTPError):
        grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=ended, details=why))
    if sender.is_running:
        sender.stop()
    grid.close()
