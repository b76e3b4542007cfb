"""Who is there: one `query.describe` to every node."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import ValidationError

from fedspeech import protocol
from fedspeech.errors import ModelError, RunError
from fedspeech.protocol import Member
from server.journal import Journal, Row


class Roster(NamedTuple):
    """The members of the federation in the order of their speakers' ids, and who is not there."""

    members: list[Member]
    absent: dict[str, str]
    """Why, by speaker."""


def describe(grid: Grid, journal: Journal, expected: Collection[str], quorum: float) -> Roster:
    """Ask every node who it is; `expected` are the speakers of the partition.

    What a device said when the run first met it counts, so that a resumed run asks the same
    questions. A device that cannot describe itself is not there. Raises RunError where there are
    fewer nodes than speakers, less than the quorum of them answers, or two say they are the same.
    """
    found, refusals = ask(grid, {})
    reasons = [f"node {node}: {why}" for node, why in refusals.items()]
    asked = question({})
    members = {}
    for speaker, (reply, *others) in found.items():
        node = reply.metadata.src_node_id
        if others:
            nodes = ", ".join(str(other.metadata.src_node_id) for other in others)
            raise RunError(f"nodes {node}, {nodes} say that they are speaker {speaker}")
        members[speaker] = Member(node=node, **first_said(journal, asked, reply))
    few_nodes = len(found) + len(refusals) < len(expected)
    if few_nodes or len(members) < max(quorum * len(expected), 1):
        missing = "; each needs a node of its own" if few_nodes else ""
        there = f"{len(members)} speakers answered, the partition has {len(expected)}{missing}"
        raise RunError("\n  ".join([there, *reasons]))
    why = "; ".join(reasons) or "no node has it"
    absent = dict.fromkeys(sorted(set(expected) - set(members)), why)
    return Roster([members[speaker] for speaker in sorted(members)], absent)


def question(said: Mapping[str, Any], node: int = 0) -> Message:
    """A `query.describe` to a node; which one it goes to makes it no other question."""
    return Message(protocol.content(said), node, protocol.DESCRIBE, group_id="0")


def ask(
    grid: Grid, said: Mapping[str, Any], timeout: float | None = None
) -> tuple[dict[str, list[Message]], dict[int, str]]:
    """Ask every node who it is: the replies by speaker, several where several say they are the
    same, and why other nodes gave none."""
    messages = [question(said, node) for node in grid.get_node_ids()]
    found: dict[str, list[Message]] = {}
    reasons = {message.metadata.dst_node_id: protocol.NO_ANSWER for message in messages}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = reply.metadata.src_node_id
        if (reason := _refused(reply)) is not None:
            reasons[node] = reason
            continue
        reasons.pop(node, None)
        found.setdefault(protocol.text(reply.content)["speaker"], []).append(reply)
    return found, reasons


def _refused(reply: Message) -> str | None:
    if (reason := protocol.failure(reply)) is not None:
        return reason
    try:
        protocol.check_answer(protocol.DESCRIBE, protocol.content({}), reply.content)
    except ModelError as error:
        return str(error)
    return None


def first_said(journal: Journal, asked: Message, reply: Message) -> dict[str, Any]:
    """What this speaker's device said of itself when the run first asked it."""
    said = protocol.Described.model_validate(protocol.text(reply.content)).model_dump()
    id = protocol.identity(asked, said["speaker"])
    if (before := said_before(journal, id)) is not None:
        return before
    sizes = protocol.size(asked.content), protocol.size(reply.content)
    journal.add(Row(id, 0, 0, said["speaker"], protocol.DESCRIBE, *sizes, said))
    return said


def said_before(journal: Journal, id: str) -> dict[str, Any] | None:
    """What the journal has of such an answer. Raises RunError where that is none."""
    if (row := journal.get(id)) is None:
        return None
    try:
        return protocol.Described.model_validate(row.answer).model_dump()
    except ValidationError as error:
        raise journal.damaged(f"of {row.speaker}, {row.kind}: {error.errors()[0]['msg']}") from None
