"""How a box answers the messages of its SuperNode.

Flower starts a new process for every message, which imports PyTorch anew, and runs whatever client
app the SuperLink has sent. Here each message is answered by a fork of this process, which has
imported everything already; and the client app is the one that is installed on the box, whatever
was sent. A fork that is killed is forked again with the same message. This process never holds a
message: on a small box that is memory which training lacks.
"""

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from clients.app import app
from fedspeech.errors import DiskError
from fedspeech.tensors import write_whole

MESSAGE = "message"
"""In the device's folder, what is being answered."""
PATIENCE_SECONDS = 20.0
"""That the SuperNode beside it may take for an answer."""
FORKS = 3
"""Of one message, where one after the other is killed."""
DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


class Task(NamedTuple):
    """A message that the SuperNode has, and the token under which it is answered."""

    token: str
    light: Message
    """The message without its content."""
    parts: ObjectTree
    context: Context
    file: Path
    """Where the whole message is, once it is here."""

    def __str__(self) -> str:
        return str(self.light.metadata.message_type)


class Answering:
    """Answers messages of a SuperNode whose runtime is at `address`; `folder` is the device's."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._file = address, folder / MESSAGE

    def answer(self, token: str) -> None:
        """Answer the message of a token, or say in the box's log why that cannot be."""
        try:
            task = self._taken(token)
        except (httpx.HTTPError, IndexError) as error:
            say(f"a message could not be read from the SuperNode: {error}")
            return
        say(f"{task}, round {task.light.metadata.group_id}")
        try:
            ended = self._by_forks(task, self._receive) or self._by_forks(task, self._work)
            if ended < 0:
                why = f"killed {FORKS} times; is the box short of memory?"
                self._push(task, Message(_error(why), reply_to=task.light), why)
        finally:
            self.tidy()

    def tidy(self) -> None:
        """Remove what was being answered, and what killed forks have left of it."""
        for left in (self._file, *self._file.parent.glob(f".{MESSAGE}.*.part")):
            left.unlink(missing_ok=True)

    def _taken(self, token: str) -> Task:
        """What there is to do, without what the message carries."""
        client = self.client("flwr-clientapp", token)
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
            TaskIdentity.node_id = given.context.node_id
            found = client.PullMessages(PullAppMessagesRequest())
        finally:
            client.close()
        light, parts = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        return Task(token, light, parts, context_from_proto(given.context), self._file)

    def _by_forks(self, task: Task, work: Callable[[Task], None]) -> int:
        """Work on a message until that is not killed; how it ended, as `_fork` has it."""
        for _ in range(FORKS):
            if (status := self._fork(task, work)) >= 0:
                break
            say(f"{task} was killed by signal {-status}; once more")
        return status

    def _fork(self, task: Task, work: Callable[[Task], None]) -> int:
        """Work in a process of its own; its exit status, or minus the signal that killed it."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                die_with_parent()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                work(task)
                status = 0
            except Exception as error:
                say(f"{task} was not passed on: {error}")
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def _receive(self, task: Task) -> None:
        """Bring the message here. On a weak link it takes its time, and its SuperNode wants to hear
        meanwhile that somebody waits for it; it may forget the message when the file is written."""
        node = Node(node_id=task.context.node_id)
        with self._heard(task) as client:
            pull = make_pull_object_fn_protobuf(client.PullObject, node, task.context.run_id)
            message: Message = pull_and_inflate_object_from_tree(
                task.parts, pull, lambda _: None, return_type=Message
            )
            id = message.metadata.__dict__["_message_id"] = task.parts.object_id
            try:
                write_whole(task.file, partial(_dump, message))
            except DiskError:
                self._push(task, Message(_error("DiskError on the device"), reply_to=message), "")
                raise
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=node, run_id=task.context.run_id, message_object_id=id
                )
            )

    def _work(self, task: Task) -> None:
        with task.file.open("rb") as file:
            message: Message = pickle.load(file)
        with self._heard(task):
            try:
                reply = app(message, task.context)
            except Exception as error:  # what the app's own mods could not tell
                reply = Message(_error(f"{type(error).__name__} on the device"), reply_to=message)
            self._push(task, reply, "")

    @contextmanager
    def _heard(self, task: Task) -> Iterator[RuntimeHttpClient]:
        """A connection by which the SuperNode hears all the while that the work goes on."""
        client = self.client("flwr-clientapp", task.token)
        sender = HeartbeatSender(make_task_heartbeat_fn_http(client))
        sender.start()
        try:
            yield client
        finally:
            if sender.is_running:
                sender.stop()
            client.close()

    def _push(self, task: Task, reply: Message, why: str) -> None:
        client = self.client("flwr-clientapp", task.token)
        push_message(client, reply, task.context)
        push_task_output(
            client, task.context, SubStatus.FAILED if why else SubStatus.COMPLETED, why
        )
        client.close()

    def client(self, name: str, token: str | None = None) -> RuntimeHttpClient:
        """A connection to the SuperNode, by one of the names that it knows."""
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


def say(line: str) -> None:
    """To the box's own log; nothing of what was said or how it was heard is in it."""
    print(line, flush=True)


def _dump(message: Message, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(message, file)


def _error(reason: str) -> Error:
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)


def _patience() -> RetryInvoker:
    """Flower's own would end this process where a run is over."""
    return RetryInvoker(
        exponential, httpx.TransportError, max_tries=None, max_time=PATIENCE_SECONDS
    )


def die_with_parent() -> None:
    """A SuperNode alone would take messages that nobody answers. Linux only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
