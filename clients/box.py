"""A box: Flower's SuperNode, and beside it what answers its messages, for as long as both last.

Flower starts a new process for every message, which imports PyTorch anew, and runs whatever client
app the SuperLink has sent. Here each message is answered by a fork of this process, which has
imported everything already; and the client app is the one that is installed on the box, whatever
was sent. A fork that is killed is forked again with the same message.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from clients.app import app
from fedspeech import protocol
from fedspeech.errors import ConfigError

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 20.0
"""That the SuperNode beside it may take for an answer."""
FORKS = 3
"""Of one message, where one after the other is killed."""
AGAIN_SECONDS = 5.0, 10.0, 20.0
"""Until a SuperNode that has ended is started again: for up to a minute its SuperLink takes it for
the one before, and refuses it."""
DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


class Task(NamedTuple):
    """A message that the SuperNode has, and the token under which it is answered."""

    token: str
    message: Message
    context: Context


class Box:
    """One SuperNode and its messages. `command` starts it, with its runtime at `address`."""

    def __init__(self, command: Sequence[str], address: str) -> None:
        self._command, self._address = list(command), address
        self._node: subprocess.Popen[bytes] | None = None
        self._ends = 0
        self._due = 0.0

    def run(self) -> None:
        """Until this process is told to end (SIGTERM, SIGINT). The SuperNode ends with it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        protocol.cut_into_pieces()
        waiting = self._client("SuperExec")
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            while True:
                self._keep_alive()
                with suppress(httpx.HTTPError):
                    if token := waiting.AcquireTask(wanted).token:
                        self._answer(token)
                        continue
                time.sleep(POLL_SECONDS)
        finally:
            waiting.close()
            self._end()

    def _keep_alive(self) -> None:
        if self._node is not None and self._node.poll() is not None:
            wait = AGAIN_SECONDS[min(self._ends, len(AGAIN_SECONDS) - 1)]
            say(f"the SuperNode has ended (status {self._node.returncode}); again in {wait:g} s")
            self._node, self._ends, self._due = None, self._ends + 1, time.monotonic() + wait
        if self._node is None and time.monotonic() >= self._due:
            self._node = subprocess.Popen(self._command, preexec_fn=_die_with_parent)

    def _end(self) -> None:
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            try:
                self._node.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._node.kill()

    def _answer(self, token: str) -> None:
        client = self._client("flwr-clientapp", token)
        try:
            message, context, _, _ = pull_task_input(client)
        except (httpx.HTTPError, RuntimeError) as error:
            say(f"a message could not be read from the SuperNode: {error}")
            return
        finally:
            client.close()
        self._ends = 0
        say(f"{message.metadata.message_type}, round {message.metadata.group_id}")
        task = Task(token, message, context)
        for _ in range(FORKS):
            if (status := self._fork(task)) >= 0:
                return
            say(f"{message.metadata.message_type} was killed by signal {-status}; once more")
        why = f"killed {FORKS} times; is the box short of memory?"
        self._push(task, Message(_error(why), reply_to=message), why)

    def _fork(self, task: Task) -> int:
        """Answer in a process of its own; its exit status, or minus the signal that killed it."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _die_with_parent()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                self._work(task)
                status = 0
            except Exception as error:
                say(f"the answer did not reach the SuperNode: {error}")
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def _work(self, task: Task) -> None:
        client = self._client("flwr-clientapp", task.token)
        sender = HeartbeatSender(make_task_heartbeat_fn_http(client))
        sender.start()
        try:
            reply = app(task.message, task.context)
        except Exception as error:  # what the app's own mods could not tell
            reply = Message(_error(f"{type(error).__name__} on the device"), reply_to=task.message)
        self._push(task, reply, "")

    def _push(self, task: Task, reply: Message, why: str) -> None:
        client = self._client("flwr-clientapp", task.token)
        push_message(client, reply, task.context)
        push_task_output(
            client, task.context, SubStatus.FAILED if why else SubStatus.COMPLETED, why
        )
        client.close()

    def _client(self, name: str, token: str | None = None) -> RuntimeHttpClient:
        interceptors = [RuntimeVersionHttpInterceptor(component_name=name)]
        if token is not None:
            interceptors.append(RuntimeTokenHttpInterceptor(token))
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,
            root_certificates=None,
            interceptors=interceptors,
            retry_invoker=_patience(),
        )


def supernode(
    server: str, ca: str, key: str, port: int, settings: Mapping[str, str | int]
) -> list[str]:
    """The command of a SuperNode whose messages are answered elsewhere.

    `settings` are what its client app finds in `node_config`. Raises ConfigError where Flower's
    command is missing.
    """
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if (command := shutil.which("flower-supernode", path=places)) is None:
        raise ConfigError("flower-supernode: not found beside Python; install fedspeech anew")
    config = " ".join(
        f"{name}={value}" if isinstance(value, int) else f'{name}="{value}"'
        for name, value in settings.items()
    )
    return [
        *(command, "--superlink", server, "--root-certificates", ca),
        *("--auth-supernode-private-key", key, "--isolation", "process"),
        *("--host", "127.0.0.1", "--port", str(port), "--node-config", config),
    ]


def run(server: str, ca: str, key: str, port: int, settings: Mapping[str, str | int]) -> None:
    """A box, until it is told to end. Raises as `supernode` does."""
    with suppress(KeyboardInterrupt):
        Box(supernode(server, ca, key, port, settings), f"127.0.0.1:{port}").run()


def say(line: str) -> None:
    """To the box's own log; nothing of what was said or how it was heard is in it."""
    print(line, flush=True)


def _error(reason: str) -> Error:
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)


def _patience() -> RetryInvoker:
    """Flower's own would end this process where a run is over."""
    return RetryInvoker(
        exponential, httpx.TransportError, max_tries=None, max_time=PATIENCE_SECONDS
    )


def _die_with_parent() -> None:
    """A SuperNode alone would take messages that nobody answers. Linux only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
