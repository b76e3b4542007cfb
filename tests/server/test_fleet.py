"""Boxes that come and go, with a SuperLink of a few lines whose boxes do what they are told."""

import time
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.protocol import Member
from server import fleet, recorded_grid, superlink
from server.fleet import FleetGrid
from server.journal import Journal
from server.recorded_grid import RecordedGrid

ANNA, BEN = 11, 12


class SuperLink:
    """Takes messages and gives out replies as Flower's HttpGrid does."""

    def __init__(self):
        self.boxes = {node: ["online", "2026-01-01T00:00:00"] for node in (ANNA, BEN)}
        self.taken: list[tuple[str, Message]] = []
        self.replies: dict[str, Message] = {}

    def get_nodes(self):
        return [box for box in self.all_nodes() if box.status == "online"]

    def all_nodes(self):
        return [
            SimpleNamespace(
                node_id=node,
                status=status,
                last_activated_at=activated,
                last_deactivated_at="2026-01-01T01:02:03.5+01:00" if status == "offline" else "",
            )
            for node, (status, activated) in self.boxes.items()
        ]

    def push_messages(self, messages):
        numbers = [f"m{len(self.taken) + i}" for i, _ in enumerate(messages)]
        self.taken += zip(numbers, messages, strict=True)
        return numbers

    def pull_messages(self, numbers):
        return [self.replies.pop(number) for number in numbers if number in self.replies]

    def answer(self, number, **values):
        self._reply(number, RecordDict({"said": ConfigRecord(values)}))

    def refuse(self, number, code, reason):
        self._reply(number, Error(code, reason))

    def _reply(self, number, content):
        message = dict(self.taken)[number]
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = number
        self.replies[number] = reply


@pytest.fixture
def link(monkeypatch):
    monkeypatch.setattr(fleet, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(superlink, "nodes", SuperLink.all_nodes)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return SuperLink()


@pytest.fixture
def grid(link, tmp_path):
    found = FleetGrid(link, "home", tmp_path / "spool", deadline=60.0)
    found.get_node_ids()
    return found


def question(node, text="how are you"):
    content = RecordDict({"asked": ConfigRecord({"text": text})})
    return Message(content, node, "query.word_errors", group_id="3")


def said(reply):
    return dict(reply.content.config_records["said"])


def test_only_boxes_that_are_there_are_nodes(grid, link):
    link.boxes[BEN][0] = "offline"
    assert grid.get_node_ids() == [ANNA]


def test_all_boxes_whose_keys_count_are_registered(grid, link):
    assert grid.registered() == {ANNA: "", BEN: ""}
    link.boxes[ANNA][0], link.boxes[BEN][0] = "offline", "registered"
    since = "offline since 2026-01-01 00:02:03 UTC"
    assert grid.registered() == {ANNA: since, BEN: "offline, has never come"}
    link.boxes[ANNA][0] = "unregistered"
    assert list(grid.registered()) == [BEN]


def test_an_answer_is_to_what_was_sent(grid, link):
    first, second = grid.push_messages([question(ANNA), question(BEN)])
    assert not list(grid.pull_messages([first, second]))
    link.answer("m1", errors=7)
    (reply,) = grid.pull_messages([first, second])
    assert (reply.metadata.reply_to_message_id, said(reply)) == (second, {"errors": 7})


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.UNKNOWN,
        ErrorCode.CLIENT_APP_CRASHED,
    ],
)
def test_what_did_not_get_there_is_sent_once_more_when_the_box_is_back(grid, link, code):
    (number,) = grid.push_messages([question(ANNA)])
    link.boxes[ANNA][0] = "offline"
    link.refuse("m0", code, "not there")
    assert not list(grid.pull_messages([number]))
    assert not list(grid.pull_messages([number]))
    assert len(link.taken) == 1
    link.boxes[ANNA][0] = "online"
    assert not list(grid.pull_messages([number]))
    again = link.taken[1][1]
    assert (again.metadata.dst_node_id, again.metadata.message_type) == (ANNA, "query.word_errors")
    assert again.metadata.group_id == "3"
    assert dict(again.content.config_records["asked"]) == {"text": "how are you"}
    link.answer("m1", errors=1)
    (reply,) = grid.pull_messages([number])
    assert (reply.metadata.reply_to_message_id, said(reply)) == (number, {"errors": 1})


def test_a_box_has_as_long_for_each_answer_and_one_that_is_away_for_all_of_them(
    grid, link, monkeypatch
):
    """Candidates come in several messages; what comes after all was due, is so at once."""
    now = [time.monotonic() + 1.0]
    ours = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(fleet, "time", ours)
    slow = grid.push_messages([question(ANNA, "one"), question(ANNA, "two")])
    (away,) = grid.push_messages([question(BEN, "one")])
    link.boxes[BEN][0] = "offline"
    now[0] += 50.0
    link.answer("m0", errors=1)
    (first,) = grid.pull_messages([*slow, away])
    assert first.metadata.reply_to_message_id == slow[0]
    now[0] += 20.0
    (late,) = grid.pull_messages([slow[1], away])
    assert late.metadata.reply_to_message_id == away and late.has_error()
    (later,) = grid.push_messages([question(BEN, "two")])
    (nothing,) = grid.pull_messages([slow[1], later])
    assert nothing.metadata.reply_to_message_id == later
    assert nothing.error.reason.startswith("no answer within 60 s, offline")
    now[0] += 39.0
    link.answer("m1", errors=2)
    (second,) = grid.pull_messages([slow[1]])
    assert said(second) == {"errors": 2}


def push_in_vain(grid, link, monkeypatch, message):
    """The number of a message that did not get to the SuperLink as a whole."""

    def broken(messages):
        raise ObjectPushError("part", 1, "session")

    with monkeypatch.context() as patched:
        patched.setattr(link, "push_messages", broken)
        (number,) = grid.push_messages([message])
    return number


def test_what_did_not_get_to_the_superlink_as_a_whole_is_sent_once_more(grid, link, monkeypatch):
    number = push_in_vain(grid, link, monkeypatch, question(ANNA))
    assert not list(grid.pull_messages([number]))
    assert len(link.taken) == 1
    link.answer("m0", errors=2)
    (reply,) = grid.pull_messages([number])
    assert (reply.metadata.reply_to_message_id, said(reply)) == (number, {"errors": 2})


def test_a_box_that_was_restarted_between_two_looks_is_asked_again(grid, link):
    (number,) = grid.push_messages([question(ANNA)])
    assert not list(grid.pull_messages([number]))
    assert len(link.taken) == 1
    link.boxes[ANNA][1] = "2026-01-01T00:05:00"
    assert not list(grid.pull_messages([number]))
    assert len(link.taken) == 2
    assert not list(grid.pull_messages([number]))
    assert len(link.taken) == 2, "once for each time that it came back"


def bringing_g(node):
    content = protocol.content({"generation": "f00d"}, generic=protocol.pack({"x": torch.ones(3)}))
    return Message(content, node, protocol.PERSONALIZE, group_id="1")


def test_g_is_not_sent_once_more_to_a_box_that_may_hold_it(grid, link):
    (number,) = grid.push_messages([bringing_g(ANNA)])
    link.boxes[ANNA][1] = "2026-01-01T00:05:00"
    assert not list(grid.pull_messages([number]))
    link.refuse("m1", ErrorCode.CLIENT_APP_CRASHED, "killed")
    assert not list(grid.pull_messages([number]))
    first, *again = [message.content for _, message in link.taken]
    assert list(first) == ["text", "generic"]
    assert [list(content) for content in again] == [["text"], ["text"]]
    assert all(protocol.text(content) == {"generation": "f00d"} for content in again)


@pytest.mark.parametrize(
    ("kind", "again"), [(protocol.INSTALL, ["text"]), (protocol.EVALUATE, ["text", "model"])]
)
def test_an_m_s_is_not_sent_once_more_to_a_box_that_may_have_kept_it(grid, link, kind, again):
    """One that is to be judged is kept nowhere."""
    content = protocol.content({"model": "f00d"}, model=protocol.pack({"x": torch.ones(3)}))
    (number,) = grid.push_messages([Message(content, ANNA, kind, group_id="1")])
    link.boxes[ANNA][1] = "2026-01-01T00:05:00"
    assert not list(grid.pull_messages([number]))
    assert [list(message.content) for _, message in link.taken] == [["text", "model"], again]


def test_a_box_that_lacks_g_is_sent_it_once_more(grid, link):
    """What it then says went wrong is the answer."""
    (number,) = grid.push_messages([bringing_g(ANNA)])
    link.refuse("m0", ErrorCode.NODE_UNAVAILABLE, "not there")
    assert not list(grid.pull_messages([number]))
    link.refuse("m1", ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "LacksError on the device")
    assert not list(grid.pull_messages([number]))
    assert ["generic" in message.content for _, message in link.taken] == [True, False, True]
    brought = protocol.unpack(link.taken[2][1].content["generic"])
    assert brought["x"].tolist() == [1.0, 1.0, 1.0]
    link.refuse("m2", ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ModelError on the device")
    (reply,) = grid.pull_messages([number])
    assert reply.error.reason == "ModelError on the device"


def test_g_goes_to_a_box_once_in_a_run(link, tmp_path):
    """Who is too late with a round is asked in the next one without what it got in the first."""
    grid = FleetGrid(link, "home", tmp_path / "spool", deadline=0.0)
    late = bringing_g(ANNA)
    assert grid.spared(late) == 0
    (reply,) = grid.pull_messages(grid.push_messages([late]))
    assert reply.has_error()
    size = protocol.size(late.content) - protocol.size(protocol.content({"generation": "f00d"}))
    assert (grid.spared(late), grid.spared(bringing_g(BEN)), grid.spared(question(ANNA))) == (
        size,
        0,
        0,
    )
    grid.push_messages([bringing_g(ANNA), bringing_g(BEN)])
    sent = [(m.metadata.dst_node_id, "generic" in m.content) for _, m in link.taken]
    assert sent == [(ANNA, True), (ANNA, False), (BEN, True)]


def test_a_resumed_run_asks_without_g_who_was_sent_it_and_brings_it_to_who_lacks_it(grid, link):
    grid.may_hold([ANNA])
    (number,) = grid.push_messages([bringing_g(ANNA)])
    link.refuse("m0", ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "LacksError on the device")
    assert not list(grid.pull_messages([number]))
    assert ["generic" in message.content for _, message in link.taken] == [False, True]


def test_what_goes_wrong_with_a_g_that_is_there_is_the_answer(grid, link):
    grid.may_hold([ANNA])
    (number,) = grid.push_messages([bringing_g(ANNA)])
    link.refuse("m0", ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "killed 3 times")
    (reply,) = grid.pull_messages([number])
    assert reply.error.reason == "killed 3 times"
    assert ["generic" in message.content for _, message in link.taken] == [False]


def test_what_came_is_there_although_the_superlink_is_gone_then(grid, link, monkeypatch):
    (number,) = grid.push_messages([question(ANNA)])
    link.answer("m0", errors=5)

    def gone():
        raise RunError("home: no SuperLink")

    monkeypatch.setattr(link, "get_nodes", gone)
    (reply,) = grid.pull_messages([number])
    assert said(reply) == {"errors": 5}
    with pytest.raises(RunError, match="no SuperLink"):
        grid.pull_messages([])


def test_a_box_that_was_restarted_before_it_is_asked_is_asked_once(grid, link):
    link.boxes[ANNA][1] = "2026-01-01T00:05:00"
    (number,) = grid.push_messages([question(ANNA)])
    assert not list(grid.pull_messages([number]))
    assert len(link.taken) == 1


def test_g_that_did_not_get_to_the_superlink_goes_along_once_more(grid, link, monkeypatch):
    number = push_in_vain(grid, link, monkeypatch, bringing_g(ANNA))
    assert not list(grid.pull_messages([number]))
    assert list(link.taken[0][1].content) == ["text", "generic"]


def test_what_the_box_itself_says_went_wrong_is_the_answer(grid, link):
    (number,) = grid.push_messages([question(ANNA)])
    link.refuse("m0", ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "CorpusError on the device")
    (reply,) = grid.pull_messages([number])
    assert (reply.metadata.reply_to_message_id, reply.error.reason) == (
        number,
        "CorpusError on the device",
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("online", "still at work"),
        ("offline", "offline since 2026-01-01 00:02:03 UTC"),
        ("registered", "offline, has never come"),
    ],
)
def test_after_its_deadline_a_message_is_answered_with_an_error(link, tmp_path, status, said):
    link.boxes[BEN][0] = status
    grid = FleetGrid(link, "home", tmp_path / "spool", deadline=0.0)
    grid.get_node_ids()
    (number,) = grid.push_messages([question(BEN)])
    (reply,) = grid.pull_messages([number])
    assert reply.metadata.reply_to_message_id == number
    assert reply.metadata.src_node_id == BEN
    assert reply.error.reason == f"no answer within 0 s, {said}"
    assert not (tmp_path / "spool").exists()


def test_a_box_whose_key_was_revoked_is_not_waited_for(grid, link, tmp_path):
    numbers = list(grid.push_messages([question(ANNA), question(BEN)]))
    assert not list(grid.pull_messages(numbers))
    link.boxes[BEN][0] = "unregistered"
    (reply,) = grid.pull_messages(numbers)
    assert reply.metadata.reply_to_message_id == numbers[1]
    assert reply.metadata.src_node_id == BEN
    assert reply.error.reason == "its key was revoked"
    assert len(list((tmp_path / "spool").iterdir())) == 1
    (reply,) = grid.send_and_receive([question(BEN)])
    assert reply.error.reason == "its key was revoked"
    assert grid.get_node_ids() == [ANNA]


def test_an_answer_after_the_deadline_is_not_taken_for_another(link, tmp_path):
    grid = FleetGrid(link, "home", tmp_path / "spool", deadline=0.0)
    grid.get_node_ids()
    list(grid.pull_messages(grid.push_messages([question(BEN)])))
    (number,) = grid.push_messages([question(ANNA)])
    link.answer("m0", errors=3)
    link.replies["m1"] = link.replies.pop("m0")
    (reply,) = grid.pull_messages([number])
    assert reply.has_error()


def test_what_is_underway_is_on_disk_only_until_it_is_answered(grid, link, tmp_path):
    numbers = list(grid.push_messages([question(ANNA), question(BEN)]))
    assert len(list((tmp_path / "spool").iterdir())) == 2
    link.answer("m0", errors=0)
    list(grid.pull_messages(numbers))
    assert len(list((tmp_path / "spool").iterdir())) == 1
    link.answer("m1", errors=0)
    list(grid.pull_messages(numbers[1:]))
    assert not (tmp_path / "spool").exists()


def test_what_a_killed_run_had_underway_is_not_kept(link, tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "message-7").write_bytes(b"")
    FleetGrid(link, "home", tmp_path / "spool", deadline=60.0)
    assert list(tmp_path.iterdir()) == []


def test_arrivals_end_with_enough_boxes_or_with_the_time(grid, link):
    assert list(grid.arrivals(2, 60.0)) == [ANNA, BEN]
    assert list(grid.arrivals(3, 0.0)) == [ANNA, BEN]


def test_everything_that_is_sent_comes_back_once(grid, link):
    link.push_messages = lambda messages, push=link.push_messages: (
        numbers := push(messages),
        [link.answer(number, errors=int(number[1:])) for number in numbers],
    )[0]
    replies = list(grid.send_and_receive([question(ANNA), question(BEN), question(ANNA)]))
    assert sorted(said(reply)["errors"] for reply in replies) == [0, 1, 2]


def test_a_deadline_of_hours_is_kept_whatever_timeout_a_strategy_gives(link, tmp_path, monkeypatch):
    """Anna answers after 6,000 s, Ben never."""
    now = [0.0]

    def sleep(seconds):
        now[0] += 500.0
        if now[0] == 6000.0:
            link.answer("m0", errors=4)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(fleet, "time", clock)
    monkeypatch.setattr(recorded_grid, "time", clock)
    monkeypatch.setattr(protocol, "check_answer", lambda *_: None)
    grid = FleetGrid(link, "home", tmp_path / "spool", deadline=7200.0)
    grid.get_node_ids()
    recorded = RecordedGrid(grid, Journal(tmp_path / "journal.sqlite"), tmp_path)
    recorded.know(Member(name, node, 60.0, 3, "") for name, node in (("anna", ANNA), ("ben", BEN)))
    first, second = recorded.send_and_receive([question(ANNA), question(BEN)], timeout=3600)
    assert said(first) == {"errors": 4}
    assert second.error.reason == "no answer within 7200 s, still at work"
    assert now[0] == 7500.0
    assert not (tmp_path / "spool").exists(), "nothing is left that could come up later"
