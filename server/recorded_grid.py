"""A Grid around any other Grid: what was answered once is not asked again, and bytes are counted.

Replies come in the order of the messages, whatever order the devices finish in. Any Flower strategy
runs on it unchanged: it sees the nodes in the order of their speakers' ids.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedspeech import progress, protocol, tensors
from fedspeech.errors import DiffError, ModelError
from fedspeech.protocol import Member
from fedspeech.tensors import Tensors
from server.journal import Journal, Row
from server.stored_arrays import stored
from server.underway import Asked, Underway
from server.wrapped_grid import WrappedGrid

POLL_SECONDS = 0.5
"""How long to wait for a grid that has nothing yet and does not wait by itself."""
COMMIT_SECONDS = 0.1
"""Answers that come together are journaled together, but none waits longer than this."""

ARRAYS = "arrays"

Keep = Callable[[str, RecordDict], RecordDict]
"""Puts a reply's tensors where they belong; gives back what is left to remember."""
StillThere = Callable[[str, RecordDict], bool]


class Keeper(NamedTuple):
    """How replies of one message type are kept, and whether what was kept is still there."""

    keep: Keep
    still_there: StillThere


class RecordedGrid(WrappedGrid):
    """Journals, counts, orders and shows progress."""

    def __init__(self, grid: Grid, journal: Journal, folder: Path) -> None:
        super().__init__(grid)
        self._journal, self._folder = journal, folder
        self._speakers: dict[int, str] = {}
        self._keepers: dict[str, Keeper] = {}
        self._positions: Counter[int] = Counter()
        self._given_up = journal.given_up()
        self._hashed: tuple[list[ArrayRecord], str] = ([], "")
        # What only our own grids say of themselves.
        self._underway = Underway(getattr(grid, "at_once", 1))
        self._ready: Callable[[], bool] = getattr(grid, "ready", lambda: False)
        self._keeps_deadlines: bool = getattr(grid, "keeps_deadlines", False)
        self._spared: Callable[[Message], int] = getattr(grid, "spared", lambda message: 0)
        self.detail: Callable[[Message], str] = lambda reply: ""
        self.before_sending: Callable[[str, str], object] = lambda speaker, kind: None
        """Told of a speaker and a message's type before it is really sent, and may raise."""

    def know(self, members: Iterable[Member]) -> None:
        """Whose node is whose."""
        ordered = sorted(members, key=lambda member: member.speaker)
        self._speakers = {member.node: member.speaker for member in ordered}

    def keep(self, kind: str, keeper: Keeper) -> None:
        """Let replies of a message type be kept by somebody else than the journal."""
        self._keepers[kind] = keeper

    def get_node_ids(self) -> Iterable[int]:
        """Nodes in the order of their speakers' ids."""
        return list(self._speakers) or self._grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies in the order of the messages, each read back from where it was kept.

        Messages are made as they are sent. After `timeout` seconds without any reply those that
        are still underway are answered with an error, unless the grid keeps deadlines itself:
        Flower's strategies give an hour, and what was given up here would still be answered there.
        """
        asked = self._exchange(messages, None if self._keeps_deadlines else timeout)
        return (one.error or self._remembered(one) for one in asked)

    def _exchange(self, messages: Iterable[Message], timeout: float | None) -> list[Asked]:
        asked: list[Asked] = []
        underway = self._underway
        with progress.stage(length_hint(messages)) as shown:
            for message in messages:
                asked.append(self._ask(message))
                shown.start(_name(message))
                if asked[-1].row is None and asked[-1].error is None:
                    self._send(asked[-1], message)
                else:
                    shown.skip()
                del message  # or its tensors would stay until the next one is made
                while underway.full() or (len(underway) and self._ready()):
                    self._collect(timeout, shown)
            while len(underway):
                self._collect(timeout, shown)
        return asked

    def _send(self, one: Asked, message: Message) -> None:
        self.before_sending(one.speaker, one.kind)
        if protocol.arrays(message.content):
            # It was sent, should this process end before the answer is kept.
            self._journal.add_unanswered(_row(one, 0, {}, ""))
        (message_id,) = self._grid.push_messages([message])
        self._underway.add(message_id, one, message)

    def _ask(self, message: Message) -> Asked:
        metadata = message.metadata
        speaker = self._speakers[metadata.dst_node_id]
        round = int(metadata.group_id) if metadata.group_id.isdecimal() else 0
        self._positions[round] += 1
        sent = protocol.arrays(message.content)
        plain = protocol.TEXT not in message.content
        id = protocol.identity(message, speaker, self._hash(sent) if plain else "")
        row = self._answered(id, speaker, message.content)
        if row is not None:
            self._underway.learn(row.kind, row.bytes_up)
        light = _light(message)
        failed = None if row else self._given_up.get((round, metadata.message_type, speaker))
        return Asked(
            id=id,
            round=round,
            position=self._positions[round],
            speaker=speaker,
            bytes_down=protocol.size(message.content) - self._spared(message),
            light=light,
            shapes={key: _shapes(record) for key, record in sent.items()} if plain else {},
            row=row,
            error=None if failed is None else Message(Error(*failed), reply_to=light),
        )

    def _hash(self, records: Mapping[str, ArrayRecord]) -> str:
        """SHA-256 of some tensors; Flower's strategies send the same ones to everybody."""
        now = list(records.values())
        if [id(record) for record in self._hashed[0]] != [id(record) for record in now]:
            hashes = [tensors.sha256(protocol.unpack(record)) for record in now]
            self._hashed = now, " ".join(hashes)
        return self._hashed[1]

    def _answered(self, id: str, speaker: str, asked: RecordDict) -> Row | None:
        """The journal's row of a message, unless what was kept of its reply is gone or damaged.

        Raises RunError where what the journal says is no answer to it.
        """
        if (row := self._journal.get(id)) is None:
            return None
        try:
            content = content_of(row.answer)
            protocol.check_answer(row.kind, asked, content)
            kept = self._is_kept(row, speaker, content)
        except (KeyError, TypeError, ValueError, AttributeError, ModelError) as error:
            raise self._journal.damaged(f"of {speaker}, {row.kind}: {error}") from None
        return row if kept else None

    def _is_kept(self, row: Row, speaker: str, content: RecordDict) -> bool:
        keeper = self._keepers.get(row.kind)
        if keeper is not None:
            return keeper.still_there(speaker, content)
        return not row.arrays or self._still_there(row)

    def _still_there(self, row: Row) -> bool:
        about = row.answer[ARRAYS]
        return tensors.intact(self._folder / row.arrays, about["sha256"]) and bool(about["name"])

    def _collect(self, timeout: float | None, shown: progress.Stage) -> None:
        """Wait for at least one reply and keep what came."""
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while not (replies := list(self._grid.pull_messages(list(self._underway)))):
            if time.monotonic() > deadline:
                reason = Error(
                    ErrorCode.NODE_UNAVAILABLE, f"{protocol.NO_ANSWER} within {timeout:g} s"
                )
                for message_id in list(self._underway):
                    late = self._underway.pop(message_id)
                    self._refuse(late, reason)
                return
            time.sleep(POLL_SECONDS)
        self._take_all(replies, shown)

    def _take_all(self, replies: list[Message], shown: progress.Stage) -> None:
        """Keep good replies in the journal; errors are not kept, they are asked again."""
        rows: list[Row] = []
        due = time.monotonic() + COMMIT_SECONDS
        replies.reverse()
        try:
            while replies:  # each is let go of before the next is put away
                reply = replies.pop()
                one = self._underway.pop(reply.metadata.reply_to_message_id)
                self._take(one, reply)
                rows += [one.row] if one.row is not None else []
                shown.advance("failed" if one.error else self.detail(reply))
                if time.monotonic() > due:
                    self._journal.add(*rows)
                    rows.clear()
                    due = time.monotonic() + COMMIT_SECONDS
        finally:
            self._journal.add(*rows)

    def _take(self, one: Asked, reply: Message) -> None:
        """Put away what a reply carries, and note its row or its error."""
        if reply.has_error():
            self._refuse(one, reply.error, len((reply.error.reason or "").encode()))
            return
        bytes_up = protocol.size(reply.content)
        try:
            protocol.check_answer(one.kind, one.light.content, reply.content)
            answer, arrays = self._put_away(one, reply.content)
        except (ModelError, DiffError) as error:
            refused = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error))
            self._refuse(one, refused, bytes_up)
            return
        self._underway.learn(one.kind, bytes_up)
        one.row = _row(one, bytes_up, answer, arrays)

    def _refuse(self, one: Asked, error: Error, bytes_up: int = 0) -> None:
        """Answer with an error; what was sent for it counts all the same."""
        one.error = Message(error, reply_to=one.light)
        self._journal.add_unanswered(_row(one, bytes_up, {}, ""))

    def _put_away(self, one: Asked, content: RecordDict) -> tuple[dict[str, Any], str]:
        """What the journal remembers of a reply, and the file of its tensors if it has one."""
        keeper = self._keepers.get(one.light.metadata.message_type)
        if keeper is not None:
            return _said(keeper.keep(one.speaker, content)), ""
        records = protocol.arrays(content)
        if not records:
            return _said(content), ""
        if len(records) > 1:
            raise ModelError(f"malformed answer: {len(records)} sets of tensors, expected one")
        ((name, record),) = records.items()
        received = protocol.unpack(record)
        if name in one.shapes:
            tensors.check_like(received, one.shapes[name])
        path = f"answers/{one.id}.safetensors"
        tensors.write(self._folder / path, received)
        kept = {"name": name, "sha256": tensors.sha256(received)}
        return {**_said(content), ARRAYS: kept}, path

    def _remembered(self, one: Asked) -> Message:
        assert one.row is not None
        content = content_of(one.row.answer)
        if one.row.arrays:
            content[one.row.answer[ARRAYS]["name"]] = stored(self._folder / one.row.arrays)
        return Message(content, reply_to=one.light)


def _row(one: Asked, bytes_up: int, answer: dict[str, Any], arrays: str) -> Row:
    return Row(
        id=one.id,
        position=one.position,
        round=one.round,
        speaker=one.speaker,
        kind=one.kind,
        bytes_down=one.bytes_down,
        bytes_up=bytes_up,
        answer=answer,
        arrays=arrays,
    )


def _name(message: Message) -> str:
    """What a stage is called: the message's type, and the base model that it is about."""
    base = protocol.text(message.content).get("base", "")
    return f"{message.metadata.message_type} {base}".rstrip()


def _light(message: Message) -> Message:
    """The message without its tensors."""
    tensors = protocol.arrays(message.content)
    if not tensors:
        return message
    kept = {name: r for name, r in message.content.items() if name not in tensors}
    return Message(content=RecordDict(kept), metadata=message.metadata)


def _shapes(record: ArrayRecord) -> Tensors:
    return {name: torch.empty(array.shape, device="meta") for name, array in record.items()}


def _said(content: RecordDict) -> dict[str, Any]:
    """Everything but tensors, as JSON takes it."""
    configs = {
        name: dict(record) for name, record in protocol.records_of(content, ConfigRecord).items()
    }
    metrics = {
        name: dict(record) for name, record in protocol.records_of(content, MetricRecord).items()
    }
    return {"configs": configs, "metrics": metrics}


def content_of(said: Mapping[str, Any]) -> RecordDict:
    """What a row's answer was: everything but its tensors, the inverse of `_said`."""
    configs = {name: ConfigRecord(values) for name, values in said["configs"].items()}
    metrics = {name: MetricRecord(values) for name, values in said["metrics"].items()}
    return RecordDict({**configs, **metrics})
