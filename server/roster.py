"""Who is there: one `query.describe` to every node."""

from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.errors import ModelError, RunError
from fedspeech.protocol import Member
from server.journal import Journal, Row


def describe(grid: Grid, journal: Journal, expected: int) -> list[Member]:
    """The members of the federation in the order of their speakers' ids.

    What a device said when the run first met it counts, so that a resumed run asks the same
    questions. Raises RunError where fewer than `expected` speakers answer, or two are the same.
    """
    messages = [
        Message(protocol.content({}), node, protocol.DESCRIBE, group_id="0")
        for node in grid.get_node_ids()
    ]
    members: dict[str, Member] = {}
    reasons = []
    for reply in grid.send_and_receive(messages):
        node = reply.metadata.src_node_id
        if (reason := _refused(reply)) is not None:
            reasons.append(f"  node {node}: {reason}")
            continue
        said = _first_said(journal, messages[0], reply)
        if said["speaker"] in members:
            raise RunError(f"two nodes say that they are speaker {said['speaker']}")
        members[said["speaker"]] = Member(node=node, **said)
    if len(members) < expected:
        missing = "" if len(messages) >= expected else "; each needs a node of its own"
        lines = [
            f"{len(members)} speakers answered, the partition has {expected}{missing}",
            *reasons,
        ]
        raise RunError("\n".join(lines))
    return [members[speaker] for speaker in sorted(members)]


def _refused(reply: Message) -> str | None:
    if (reason := protocol.failure(reply)) is not None:
        return reason
    try:
        protocol.check_answer(protocol.DESCRIBE, protocol.content({}), reply.content)
    except ModelError as error:
        return str(error)
    return None


def _first_said(journal: Journal, asked: Message, reply: Message) -> dict[str, Any]:
    """What this speaker's device said of itself when the run first asked it."""
    said = protocol.Described.model_validate(protocol.text(reply.content)).model_dump()
    id = protocol.identity(asked, said["speaker"])
    if (row := journal.get(id)) is not None:
        return row.answer
    sizes = protocol.size(asked.content), protocol.size(reply.content)
    journal.add(Row(id, 0, 0, said["speaker"], protocol.DESCRIBE, *sizes, said))
    return said
