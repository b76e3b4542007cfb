"""Flower's grid, with replies that arrive side by side.

A SuperLink gives a reply out when its box begins to send it, and Flower's grid waits then until all
of it is there. Behind a slow link that takes minutes, and a box that goes away in the middle is
waited for longer still; meanwhile neither a deadline nor another box would count.
"""

import copy
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flwr.app import Message
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

AT_ONCE = 8
"""Replies that are waited for side by side; each may be in memory. Others wait at the SuperLink."""


class PatientGrid(HttpGrid):
    """`pull_messages` gives what is there as a whole, and never waits."""

    def __init__(self, address: str, insecure: bool, certificates: bytes | None, token: str):
        super().__init__(address, insecure, certificates, token=token)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="reply")
        self._arriving: dict[str, Future[list[Message]]] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are complete; raises what was raised when one of them was fetched."""
        if new := [id for id in message_ids if id not in self._arriving]:
            found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=new))
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                one = PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])
                id = message.metadata.reply_to_message_id
                self._arriving[id] = self._pool.submit(self._fetch, one)
        there = [id for id, arriving in self._arriving.items() if arriving.done()]
        return [reply for id in there for reply in self._arriving.pop(id).result()]

    def _fetch(self, found: PullAppMessagesResponse) -> list[Message]:
        """Let Flower read what a message of that answer consists of."""
        other = copy.copy(self)
        other._client = _Answered(self._runtime_client, found)  # type: ignore[assignment]
        return list(HttpGrid.pull_messages(other, []))

    def close(self) -> None:
        """Give up what is still arriving, and disconnect."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


class _Answered:
    """A client whose question for messages is answered already."""

    def __init__(self, client: RuntimeHttpClient, found: PullAppMessagesResponse) -> None:
        self._client, self._found = client, found

    def PullMessages(self, _: PullAppMessagesRequest) -> PullAppMessagesResponse:
        return self._found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
