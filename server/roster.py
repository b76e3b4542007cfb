"""Who is there: one `query.describe` to every node."""

from flwr.app import Message
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.protocol import Member
from server.journal import Journal


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
        if (reason := protocol.failure(reply)) is not None:
            reasons.append(f"  node {reply.metadata.src_node_id}: {reason}")
            continue
        said = protocol.text(reply.content)
        said = journal.first_description(said["speaker"], said)
        if said["speaker"] in members:
            raise RunError(f"two nodes say that they are speaker {said['speaker']}")
        members[said["speaker"]] = Member(node=reply.metadata.src_node_id, **said)
    if len(members) < expected:
        lines = [
            f"{len(members)} speakers answered, the partition has {expected}; "
            "each needs a node of its own",
            *reasons,
        ]
        raise RunError("\n".join(lines))
    return [members[speaker] for speaker in sorted(members)]
