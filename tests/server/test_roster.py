import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedspeech import protocol
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import RunError
from fedspeech.simulation.in_process import InProcessGrid
from server.journal import Journal
from server.roster import describe

app = ClientApp()


@app.query("describe")
def say(message: Message, context) -> Message:
    """What the node's configuration says, or nothing at all."""
    if context.node_config.get("broken"):
        raise OSError("no device here")
    said = {k: v for k, v in context.node_config.items() if k != "threads"}
    return Message(protocol.content(said), reply_to=message)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.sqlite")


def grid(*nodes):
    return InProcessGrid(f"{__name__}:app", lambda: nodes, EngineSettings())


def node(speaker: str, seconds: float = 60.0, generation: str = "") -> dict:
    return {
        "speaker": speaker,
        "seconds": seconds,
        "utterances": 3,
        "generation": generation,
    }


def test_members_come_in_the_order_of_their_speakers(journal):
    found, absent = describe(
        grid(node("s3"), node("s1", 50.5), node("s2")), journal, ["s1", "s2", "s3"], 1.0
    )
    assert absent == {}
    assert [(m.speaker, m.node, m.seconds) for m in found] == [
        ("s1", 1002, 50.5),
        ("s2", 1003, 60.0),
        ("s3", 1001, 60.0),
    ]


def test_what_a_device_said_first_counts(journal):
    """A resumed run asks the same questions although the devices hold G by now."""
    both = {"s1", "s2"}
    before = describe(grid(node("s1"), node("s2")), journal, both, 1.0)
    ledger = list(journal.ledger())
    after = describe(grid(node("s1", generation="abc"), node("s2", 70.0)), journal, both, 1.0)
    assert after == before
    assert list(journal.ledger()) == ledger
    asked = protocol.size(protocol.content({}))
    assert [row[:4] for row in ledger] == [
        (0, speaker, way, protocol.DESCRIBE) for speaker in ("s1", "s2") for way in ("down", "up")
    ]
    assert ledger[0][4] == asked


def test_a_device_that_cannot_say_who_it_is_is_not_there(journal):
    there = grid(node("s1"), {"broken": True}, node("s3"))
    members, absent = describe(there, journal, {"s1", "s2", "s3"}, 0.6)
    assert [member.speaker for member in members] == ["s1", "s3"]
    assert absent == {"s2": "node 1002: OSError: no device here"}


def test_too_few_are_told_with_the_reasons(journal):
    few = grid(node("s1"), {"broken": True}, node("../s2"))
    with pytest.raises(RunError) as told:
        describe(few, journal, {"s1", "s2", "s3"}, 0.5)
    lines = str(told.value).splitlines()
    assert lines[0] == "1 speakers answered, the partition has 3"
    assert lines[1] == "  node 1002: OSError: no device here"
    assert lines[2].startswith("  node 1003: malformed answer: speaker: ")
    assert len(lines) == 3
    assert describe(few, journal, {"s1", "s2", "s3"}, 0.3).members[0].speaker == "s1"
    with pytest.raises(RunError, match=r"^0 speakers answered, the partition has 1\n"):
        describe(grid({"broken": True}), journal, {"s1"}, 0.0)


def test_too_few_nodes_are_told(journal):
    told = "2 speakers answered, the partition has 3; each needs a node of its own"
    with pytest.raises(RunError, match=f"^{told}$"):
        describe(grid(node("s1"), node("s2")), journal, {"s1", "s2", "s3"}, 0.1)


def test_one_speaker_at_two_nodes_is_refused(journal):
    with pytest.raises(RunError, match="nodes 1001, 1003 say that they are speaker s1"):
        describe(grid(node("s1"), node("s2"), node("s1")), journal, {"s1", "s2"}, 1.0)
