import pytest
from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.protocol import Member
from strategies.exchange import Exchange
from strategies.outcome import Failure

SPEAKERS = ("anna", "bert", "cleo", "dora")
KIND = protocol.INSTALL


class Post:
    """Makes messages, as a grid does."""

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


@pytest.fixture(autouse=True, scope="module")
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def failures():
    return []


@pytest.fixture
def exchange(failures):
    members = [Member(s, 10 + i, 60.0, 3, "") for i, s in enumerate(SPEAKERS)]
    found = Exchange(members[::-1], 0.5, failures)
    found.admit(SPEAKERS[::-1])
    return found


def ask(exchange, round=1) -> dict[str, Message]:
    return {
        speaker: exchange.message(Post(), round, KIND, speaker, RecordDict())
        for speaker in list(exchange.active)
    }


def good(message, said) -> Message:
    return Message(protocol.content(said), reply_to=message)


def bad(message, reason) -> Message:
    return Message(Error(2, reason), reply_to=message)


def answers(exchange, replies, round=1) -> dict:
    return {s: protocol.text(c) for s, c in exchange.answers(round, KIND, replies)}


def test_messages_go_to_the_speakers_nodes(exchange):
    messages = ask(exchange, round=3)
    assert list(messages) == list(SPEAKERS)
    assert [m.metadata.dst_node_id for m in messages.values()] == [10, 11, 12, 13]
    assert {m.metadata.group_id for m in messages.values()} == {"3"}


def test_good_answers_come_as_they_are(exchange, failures):
    messages = ask(exchange)
    replies = [good(messages[s], {"of": s}) for s in reversed(SPEAKERS)]
    assert answers(exchange, replies) == {s: {"of": s} for s in SPEAKERS}
    assert list(exchange.active) == list(SPEAKERS)
    assert failures == []


def test_errors_and_silence_drop_out_for_good(exchange, failures):
    messages = ask(exchange)
    replies = [good(messages["dora"], {}), bad(messages["bert"], "no"), good(messages["anna"], {})]
    assert set(answers(exchange, replies)) == {"anna", "dora"}
    assert list(exchange.active) == ["anna", "dora"]
    assert failures == [Failure("bert", 1, KIND, "no"), Failure("cleo", 1, KIND, "no answer")]
    messages |= ask(exchange, round=2)
    late = [good(messages[s], {}) for s in ("cleo", "anna", "dora")]
    assert set(answers(exchange, late, round=2)) == {"anna", "dora"}
    assert len(failures) == 2


def test_two_messages_to_one_speaker(exchange, failures):
    """Both answers count; where one fails the speaker is out, with one reason."""
    messages = ask(exchange)
    more = ask(exchange)
    replies = [good(m, {"n": 1}) for m in messages.values()]
    replies += [bad(more[s], "full") if s == "bert" else good(more[s], {"n": 2}) for s in SPEAKERS]
    found = [s for s, _ in exchange.answers(1, KIND, replies)]
    assert sorted(found) == sorted([*SPEAKERS, "anna", "cleo", "dora"])
    assert list(exchange.active) == ["anna", "cleo", "dora"]
    assert failures == [Failure("bert", 1, KIND, "full")]


def test_below_the_quorum_the_reasons_are_told(exchange):
    messages = ask(exchange)
    replies = [good(messages["cleo"], {}), bad(messages["anna"], "out of memory")]
    with pytest.raises(RunError) as told:
        answers(exchange, replies)
    assert str(told.value).splitlines() == [
        "round 1, train.install: 1 of 4 speakers left, expected at least 2 (federation.quorum)",
        "  anna, round 1, train.install: out of memory",
        "  bert, round 1, train.install: no answer",
        "  dora, round 1, train.install: no answer",
    ]


@pytest.mark.parametrize(
    ("quorum", "left", "holds"), [(0.0, 1, True), (0.0, 0, False), (0.5, 2, True), (0.51, 2, False)]
)
def test_the_quorum_is_a_share_of_all_and_at_least_one(failures, quorum, left, holds):
    members = [Member(s, 10 + i, 60.0, 3, "") for i, s in enumerate(SPEAKERS)]
    exchange = Exchange(members, quorum, failures)
    exchange.admit(SPEAKERS)
    messages = ask(exchange)
    replies = [good(messages[s], {}) for s in SPEAKERS[:left]]
    if holds:
        assert len(answers(exchange, replies)) == left
    else:
        with pytest.raises(RunError):
            answers(exchange, replies)


def test_what_an_earlier_round_left_is_taken_up(exchange, failures):
    exchange.restore(["anna", "dora"], [Failure("bert", 1, KIND, "no")])
    assert list(ask(exchange, 2)) == ["anna", "dora"]
    assert failures == [Failure("bert", 1, KIND, "no")]


def test_who_never_took_part_counts_in_no_quorum(exchange, failures):
    failures += [Failure(f"node {i}", 0, protocol.DESCRIBE, "no speech") for i in range(3)]
    messages = ask(exchange)
    assert set(answers(exchange, [good(messages[s], {}) for s in ("anna", "dora")])) == {
        "anna",
        "dora",
    }
    exchange.restore(["anna", "dora"], failures[:3])
    assert [failure.speaker for failure in failures] == [
        *("node 0", "node 1", "node 2"),
        *("bert", "cleo"),
    ]
