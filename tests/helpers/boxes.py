"""A SuperLink of a few lines whose boxes are the shipped client app in this process."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from fedspeech.device import identity

Withheld = Callable[[str, Message], bool]
"""Whether a box, by its speaker, does not answer a message for now."""


class Boxes:
    """What a Grid to a SuperLink does, for boxes with a folder of speech each, by speaker."""

    def __init__(
        self, speech: dict[str, Path], folder: Path, withheld: Withheld = lambda *_: False
    ) -> None:
        self.run = Run.create_empty(run_id=1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._withheld = withheld
        self.offline: set[str | int] = set()
        """Speakers, or nodes."""
        self.revoked: set[str] = set()
        self.idle: Callable[[], None] = lambda: None
        """Called where nothing comes: nobody who is asked answers, or somebody is not there."""
        self.asked: list[tuple[str, str, str]] = []
        """Speaker, type and round of every message that a box was given."""
        self._waiting: dict[str, Message] = {}
        self._boxes: dict[int, tuple[str, Context]] = {}
        for node, (speaker, path) in enumerate(sorted(speech.items()), 101):
            identity.settle(folder / speaker, speaker)
            config = {"device": str(folder / speaker), "speech": str(path), "threads": 1}
            self._boxes[node] = speaker, Context(1, node, config, RecordDict(), {})

    def node(self, speaker: str) -> int:
        """Where a speaker's box is."""
        return next(node for node, (name, _) in self._boxes.items() if name == speaker)

    def clone(self, speaker: str) -> None:
        """A second box that says it is this speaker, and has the same speech."""
        node, config = max(self._boxes) + 1, self._boxes[self.node(speaker)][1].node_config
        self._boxes[node] = speaker, Context(1, node, config, RecordDict(), {})

    def get_nodes(self) -> list[SimpleNamespace]:
        if self.offline:
            self.idle()
        return [box for box in self.all_nodes() if box.status == "online"]

    def all_nodes(self) -> list[SimpleNamespace]:
        """Also those that are away, as a SuperLink's control interface tells of them."""
        return [
            SimpleNamespace(
                node_id=node,
                name=f"box-{node}",
                status=self._status(node, speaker),
                last_activated_at="2026-01-01T00:00:00",
                last_deactivated_at="2026-01-02T03:04:05+00:00",
            )
            for node, (speaker, _) in self._boxes.items()
        ]

    def _status(self, node: int, speaker: str) -> str:
        if speaker in self.revoked:
            return "unregistered"
        return "offline" if self.offline & {node, speaker} else "online"

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            numbers.append(f"m{len(self.asked) + len(self._waiting)}-{id(message)}")
            self._waiting[numbers[-1]] = message
        return numbers

    def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
        found = [(number, self._answer(self._waiting[number])) for number in numbers]
        replies = []
        for number, reply in found:
            if reply is not None:
                reply.metadata.__dict__["_reply_to_message_id"] = number
                del self._waiting[number]
                replies.append(reply)
        if found and not replies:
            self.idle()
        return replies

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        speaker, context = self._boxes[node]
        if self._status(node, speaker) != "online":
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "not there"), reply_to=message)
        about = message.metadata
        reply = app(message, context)
        self.asked.append((speaker, about.message_type, about.group_id))
        return None if self._withheld(speaker, message) else reply
