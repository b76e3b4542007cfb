"""The boxes of a deployment as a Grid: they come and go, and each is asked until it answers.

A SuperLink tells of a message to a box that was away when it came, or whose client was killed, by
an error a minute later; of one that a SuperNode took and then forgot because it was restarted, it
tells nothing at all. Here every message is kept on disk until it is answered or its deadline is
over, and sent once more as soon as its box is there again: at first without the G or M_s that it
brought, which a box keeps.
"""

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.constant import NodeStatus
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.superlink.grid import HttpGrid

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.participation import REVOKED
from fedspeech.tensors import write_whole
from server import superlink
from server.wrapped_grid import WrappedGrid

log = logging.getLogger("fedspeech")

POLL_SECONDS = 0.5
LOOK_SECONDS = 3.0
"""Between two looks at who is there; a SuperNode asks for messages as often."""
SENT_AGAIN = {
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.UNKNOWN,
    ErrorCode.CLIENT_APP_CRASHED,
}
"""Flower's errors that say nothing about what was asked. A box tells by itself where its client is
killed again and again; of one that crashed its SuperNode tells when it has not heard of it."""


@dataclass
class _Pending:
    """A message that is not answered yet; its content is in `file`."""

    light: Message
    file: Path
    began: float
    due: float
    deadline: float
    """Seconds that its box has for it, after what it was asked before."""
    number: str
    """Under which the SuperLink has it; empty where it has to be sent once more."""
    activated: str
    """When its box had last come in by then."""
    brought: bool = False
    """Whether it has gone there as a whole, so that its box may hold what it brings by now."""
    brief: bool = False
    """Whether it was last sent without that."""


class FleetGrid(WrappedGrid):
    """Around Flower's grid to a SuperLink, for messages with a deadline each."""

    keeps_deadlines = True
    """Every message that is pushed is answered in the end, if only by an error."""

    def __init__(self, grid: HttpGrid, name: str, spool: Path, deadline: float) -> None:
        super().__init__(grid)
        self._http, self._name, self._spool, self._deadline = grid, name, spool, deadline
        self._pending: dict[str, _Pending] = {}
        self._ids: dict[str, str] = {}
        """By the SuperLink's number of a message, the id under which it is asked for."""
        self._count = itertools.count()
        self.over: Callable[[Metadata, float, float], None] = lambda *_: None
        """Told of each message that is answered or given up: when it was sent (Unix time), and how
        many seconds ago that is."""
        self._dues: dict[tuple[int, str, str], float] = {}
        """Of the boxes, by what of which round they are asked."""
        self._boxes: Mapping[int, NodeInfo] = {}
        self._looked = 0.0
        self._may_hold: set[int] = set()
        protocol.cut_into_pieces()
        shutil.rmtree(spool, ignore_errors=True)

    @property
    def at_once(self) -> int:
        """All boxes work at the same time; what waits for one that is away holds up no other."""
        return max(1, len(self.registered()))

    def get_node_ids(self) -> list[int]:
        """Boxes that are there now."""
        self._look()
        return self._online()

    def _online(self) -> list[int]:
        return sorted(node for node, box in self._boxes.items() if box.status == NodeStatus.ONLINE)

    def registered(self) -> dict[int, str]:
        """All boxes whose keys count: nothing of those that are there, else where they are."""
        with superlink.told(self._name):
            self._boxes = {box.node_id: box for box in superlink.nodes(self._http)}
        return {
            node: "" if box.status == NodeStatus.ONLINE else _state(box)
            for node, box in self._boxes.items()
            if box.status != NodeStatus.UNREGISTERED
        }

    def called(self, node: int) -> str:
        """What an operator knows a node by."""
        box = self._boxes.get(node)
        return f"node {node} (box {box.name})" if box is not None and box.name else f"node {node}"

    def arrivals(self, count: int, seconds: float) -> Iterator[int]:
        """Nodes as they come in, until there are so many of them; for at most so long."""
        until, seen = time.monotonic() + seconds, set[int]()
        while True:
            new = [node for node in self.get_node_ids() if node not in seen]
            seen.update(new)
            yield from new
            if len(seen) >= count or time.monotonic() > until:
                return
            time.sleep(min(LOOK_SECONDS, seconds))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; the ids under which they are asked for, whichever way they go."""
        return self._push(messages, self._deadline)

    def may_hold(self, nodes: Iterable[int]) -> None:
        """To these boxes G has gone before, in this run: at first they are asked without it."""
        self._may_hold.update(nodes)

    def spared(self, message: Message) -> int:
        """Bytes of what a message brings that do not go along at first."""
        record = protocol.arrays(message.content).get(protocol.GENERIC)
        if record is None or message.metadata.dst_node_id not in self._may_hold:
            return 0
        return protocol.size(RecordDict({protocol.GENERIC: record}))

    def _push(self, messages: Iterable[Message], deadline: float) -> list[str]:
        ids = []
        for message in messages:
            self._attend()
            id = f"message-{next(self._count)}"
            pending = self._pending[id] = self._keep(id, message, deadline)
            pending.brought = self.spared(message) > 0
            self._send(id, self._message(pending) if pending.brought else message)
            ids.append(id)
        return ids

    def _keep(self, id: str, message: Message, deadline: float) -> _Pending:
        data = recorddict_to_proto(message.content).SerializeToString(deterministic=True)
        self._spool.mkdir(parents=True, exist_ok=True)
        file = self._spool / id
        write_whole(file, lambda part: part.write_bytes(data))
        light, now = Message(content=RecordDict(), metadata=message.metadata), time.monotonic()
        # A box that is away has one deadline for all that it is asked of an exchange.
        due = self._dues.setdefault(_exchange(light), now + deadline)
        return _Pending(light, file, now, due, deadline, number="", activated="")

    def _send(self, id: str, message: Message) -> None:
        pending = self._pending[id]
        try:
            with superlink.told(self._name):
                (number,) = self._http.push_messages([message])
        except ObjectPushError:  # not all of it has come there
            number = ""
        pending.brought |= bool(number)
        if number and protocol.GENERIC in message.content:
            self._may_hold.add(message.metadata.dst_node_id)
        box = self._boxes.get(message.metadata.dst_node_id)
        pending.number, pending.activated = number or "", box.last_activated_at if box else ""
        if number:
            self._ids[number] = id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """What came, as answers to what was sent first; errors for what is over its deadline."""
        numbers = [number for id in message_ids if (number := self._pending[id].number)]
        with superlink.told(self._name):
            replies = list(self._http.pull_messages(numbers)) if numbers else []
        answered = [self._taken(reply) for reply in replies]
        try:
            self._attend()
        except RunError:
            if not answered:  # else it is told at the next call, when these are kept
                raise
        given_up = [self._give_up(id, why) for id, why in self._hopeless().items()]
        return iter([reply for reply in (*answered, *given_up) if reply is not None])

    def _taken(self, reply: Message) -> Message | None:
        """The reply as one to what was asked; None where that is to be sent once more."""
        id = self._ids.pop(reply.metadata.reply_to_message_id, "")
        if id not in self._pending:  # answered already, or given up
            return None
        pending = self._pending[id]
        lacking = pending.brief and protocol.lacks(reply)
        if lacking or (reply.has_error() and reply.error.code in SENT_AGAIN):
            pending.number = ""
            pending.brought &= not lacking
            return None
        self._allow_more(self._done(id))
        reply.metadata.__dict__["_reply_to_message_id"] = id
        return reply

    def _allow_more(self, answered: _Pending) -> None:
        """Who answers has as long again for the next answer."""
        asked, due = _exchange(answered.light), time.monotonic() + answered.deadline
        self._dues.pop(asked, None)
        for other in self._pending.values():
            if _exchange(other.light) == asked:
                self._dues[asked] = other.due = due

    def _attend(self) -> None:
        """Look now and then who is there, and send once more what got lost."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
            self._send_again()

    def _look(self) -> None:
        waited_for = {each.light.metadata.dst_node_id for each in self._pending.values()}
        with superlink.told(self._name):
            boxes = {box.node_id: box for box in self._http.get_nodes()}
            if waited_for - boxes.keys():  # the grid knows those that are there
                boxes = {box.node_id: box for box in superlink.nodes(self._http)}
        self._boxes, self._looked = boxes, time.monotonic()

    def _send_again(self) -> None:
        """What its box cannot have any more, where the box is there."""
        for id, pending in self._pending.items():
            box = self._boxes.get(pending.light.metadata.dst_node_id)
            if box is None or box.status != NodeStatus.ONLINE:
                continue
            if not pending.number or box.last_activated_at != pending.activated:
                about = pending.light.metadata
                log.info("box %s is there: %s once more", box.node_id, about.message_type)
                self._send(id, self._message(pending))

    def _message(self, pending: _Pending) -> Message:
        """What is sent once more; the model that a box keeps goes along where it never came, or the
        box says that it lacks it."""
        proto = RecordDictProto.FromString(pending.file.read_bytes())
        content, about = recorddict_from_proto(proto), pending.light.metadata
        kept = protocol.KEPT.get(about.message_type, "")
        pending.brief = pending.brought and kept in content
        if pending.brief:
            del content[kept]
        return Message(content, about.dst_node_id, about.message_type, group_id=about.group_id)

    def _hopeless(self) -> dict[str, str]:
        """Why messages are answered by nobody: their boxes may not any more, or are too late."""
        found, now = {}, time.monotonic()
        for id, pending in self._pending.items():
            box = self._boxes.get(pending.light.metadata.dst_node_id)
            if box is not None and box.status == NodeStatus.UNREGISTERED:
                found[id] = REVOKED
            elif now > pending.due:
                found[id] = f"{protocol.NO_ANSWER} within {pending.deadline:g} s, {_state(box)}"
        return found

    def _give_up(self, id: str, why: str) -> Message:
        pending = self._done(id)
        reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, why), reply_to=pending.light)
        reply.metadata.__dict__["_reply_to_message_id"] = id
        return reply

    def _done(self, id: str) -> _Pending:
        """Forget a message; where none is left, nothing of them stays on the disk."""
        pending = self._pending.pop(id)
        pending.file.unlink()
        seconds = time.monotonic() - pending.began
        began = datetime.now(UTC).timestamp() - seconds
        self.over(pending.light.metadata, began, seconds)
        if not self._pending:
            self._spool.rmdir()
        return pending

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies in the order in which they come; none later than `timeout`, or the deadline."""
        deadline = self._deadline if timeout is None else timeout
        waiting = dict.fromkeys(self._push(messages, deadline))
        while waiting:
            for reply in self.pull_messages(list(waiting)):
                del waiting[reply.metadata.reply_to_message_id]
                yield reply
            time.sleep(POLL_SECONDS if waiting else 0)


def _exchange(message: Message) -> tuple[int, str, str]:
    """Which box is asked, and for what in which round."""
    about = message.metadata
    return about.dst_node_id, about.message_type, about.group_id


def _state(box: NodeInfo | None) -> str:
    """Where a box is that has not answered."""
    if box is not None and box.status == NodeStatus.ONLINE:
        return "still at work"
    if box is not None and box.status == NodeStatus.REGISTERED:
        return f"{protocol.OFFLINE}, has never come"
    if box is None or not box.last_deactivated_at:
        return protocol.OFFLINE
    since = datetime.fromisoformat(box.last_deactivated_at).astimezone(UTC)
    return f"{protocol.OFFLINE} since {since:%Y-%m-%d %H:%M:%S} UTC"
