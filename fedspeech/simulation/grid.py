"""What the simulated grids share: nodes, contexts, and how a client app answers one message."""

import importlib
import itertools
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedspeech import apps, protocol
from fedspeech.errors import DiskError
from fedspeech.simulation import sizing
from fedspeech.simulation.cohorts import Cohorts

LOG = logging.getLogger(__name__)
NodeConfig = Mapping[str, str | int | float | bool]
Nodes = Callable[[], Sequence[NodeConfig]]

SERVER_NODE = 1
FIRST_NODE = 1001


class SimulatedGrid(Grid):  # type: ignore[misc]  # Flower is not typed for us
    """Nodes in the order of their configurations; replies come in the order of the messages.

    `nodes` is called when the nodes are asked for first: a grid starts while the server still reads
    the corpus that says how many there are.
    """

    at_once = 1
    """How many messages have to be there so that all workers can be busy."""

    def __init__(self, nodes: Nodes, cohort: int = 1) -> None:
        self._cohort = cohort
        self.deaths = 0
        """How often a worker died."""
        self.errors = 0
        """How often a client that raised was asked again."""
        self._nodes = nodes
        self._run = Run.create_empty(run_id=1)
        self._numbers = itertools.count(1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER_NODE, 1

    @cached_property
    def _contexts(self) -> dict[int, Context]:
        return {
            number: Context(1, number, node_config=dict(node), state=RecordDict(), run_config={})
            for number, node in enumerate(self._nodes(), FIRST_NODE)
        }

    @cached_property
    def _cohorts(self) -> Cohorts:
        return Cohorts(self._cohort, list(self._contexts))

    def _goes_with_a_cohort(self, message: Message) -> bool:
        return self._cohort > 1 and message.metadata.message_type == protocol.PERSONALIZE

    def _ask_again(self, reply: Message) -> None:
        self.errors += 1
        LOG.warning("a client raised (%s); it is asked again", reply.error.reason)

    def set_run(self, run: Run) -> None:
        """Take over the run's information."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's information."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in the order of their configurations."""
        return list(self._contexts)

    @abstractmethod
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages to answer; their ids, in the same order."""

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to some of the messages; waits until there is at least one."""

    def ready(self) -> bool:
        """Whether there are replies to pull already."""
        return False

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies in the order of the messages. `timeout` is not used: every message ends here."""
        ids = list(self.push_messages(messages))
        replies: dict[str, Message] = {}
        waiting = dict.fromkeys(ids)
        while waiting:
            for reply in self.pull_messages(list(waiting)):
                id = reply.metadata.reply_to_message_id
                del waiting[id]
                replies[id] = reply
        return iter([replies[i] for i in ids])

    def _number(self, message: Message) -> str:
        number = f"m{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = number
        return number


def load(reference: str) -> Any:
    """What `module:name` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def load_app(reference: str) -> ClientApp:
    """The client app that `module:name` names."""
    app = load(reference)
    assert isinstance(app, ClientApp)
    return app


def prepare(cohort: Sequence[tuple[Context, Message | None]]) -> None:
    """Fine-tune a cohort by what the entry point `cohort` names, before its devices are asked.

    Raises RunError where the stack does not fit the memory.
    """
    with sizing.measured(len(cohort)):
        apps.find("cohort").load()(cohort)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's reply, or an error reply that says what was raised, as Flower does.

    Raises DiskError where a device could not write: simulated devices share this machine's disk,
    and a run on a full one would lose speaker after speaker.
    """
    try:
        reply = app(message, context)
    except (Exception, SystemExit) as error:  # on Ray the latter ends a worker, and no run either
        reason = f"{type(error).__name__}: {error}"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    if reply.has_error() and (reply.error.reason or "").startswith(DiskError.__name__):
        device = context.node_config.get("device", f"node {context.node_id}")
        raise DiskError(f"{device}: the device cannot write there; the disk may be full")
    return reply
