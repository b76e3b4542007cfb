"""Messages that were asked for, and how many of them may be underway at a time."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message

from fedspeech import protocol
from fedspeech.tensors import Tensors
from server.journal import Row

MOST_UNDERWAY = 1024
"""Messages that are sent and not answered yet; further ones are not even made."""
MOST_BYTES_UNDERWAY = 2**28
"""Of the tensors that they carry or will bring back. A message more may go beyond it."""


@dataclass
class Asked:
    """A message that was asked for: without its tensors, and with its answer once it is there."""

    id: str
    round: int
    position: int
    speaker: str
    bytes_down: int
    light: Message
    shapes: dict[str, Tensors]
    """What Flower's strategies sent, without values; the answer has to be like it."""
    row: Row | None
    error: Message | None = None

    @property
    def kind(self) -> str:
        """The message's type."""
        return str(self.light.metadata.message_type)


class Underway:
    """What is underway, by the message ids of the grid that it was sent through.

    `at_once` is how many messages that grid answers at the same time: so many may always be
    underway. A reply is taken to be as large as the largest one of its type so far, and before
    there is any, as the largest set of tensors that was ever sent or received.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._asked: dict[str, tuple[Asked, int]] = {}
        self._bytes = 0
        self._largest, self._replies = 0, dict[str, int]()
        self._previous: list[weakref.ref[ArrayRecord]] = []

    def __len__(self) -> int:
        return len(self._asked)

    def __iter__(self) -> Iterator[str]:
        return iter(self._asked)

    def add(self, message_id: str, one: Asked, message: Message) -> None:
        """It was sent. Tensors that the message before it carried too are not counted again."""
        records = list(protocol.arrays(message.content).values())
        sizes = [_size(record) for record in records]
        self._largest = max(self._largest, *sizes, 0)
        held = sum(
            size
            for size, record in zip(sizes, records, strict=True)
            if not any(known() is record for known in self._previous)
        )
        self._previous = [weakref.ref(record) for record in records]
        held += self._replies.get(one.kind, self._largest)
        self._asked[message_id] = one, held
        self._bytes += held

    def learn(self, kind: str, size: int) -> None:
        """A reply to a message of this type had so many bytes."""
        self._largest = max(self._largest, size)
        self._replies[kind] = max(self._replies.get(kind, 0), size)

    def pop(self, message_id: str) -> Asked:
        """It was answered."""
        one, held = self._asked.pop(message_id)
        self._bytes -= held
        return one

    def full(self) -> bool:
        """Whether no further message may be made before one is answered."""
        many = len(self) >= MOST_UNDERWAY or self._bytes >= MOST_BYTES_UNDERWAY
        return many and len(self) >= self._at_once


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
