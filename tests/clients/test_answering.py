"""What a box does with a message, beside a SuperNode of a few lines; the forks are real."""

import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import context_to_proto, message_to_proto, run_to_proto
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import (
    PullAppMessagesResponse,
    PullTaskInputResponse,
    PushAppMessagesResponse,
    PushTaskOutputResponse,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients import answering
from clients.answering import Answering
from fedspeech import protocol
from fedspeech.errors import DiskError


class SuperNode:
    """Has one message; what it is asked and told is in files of `folder`, whoever asks."""

    def __init__(self, folder: Path):
        self.folder = folder
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 7, 1
        content = protocol.content({"n": 3}, model=protocol.pack({"w": torch.arange(5.0)}))
        message = Message(content, 7, protocol.INSTALL, group_id="2")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.tree = get_object_tree(message)
        self.parts = {i: p.deflate() for i, p in get_all_nested_objects(message).items()}
        self.light = message_to_proto(remove_content_from_message(message))
        self.kills_once = False

    def note(self, what):
        with (self.folder / "asked").open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def is_first(self):
        """Objects are pulled by several threads at once, and only one of them is told so."""
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def asked(self, what):
        lines = [line.split() for line in (self.folder / "asked").read_text().splitlines()]
        return [int(who) for asked, who in lines if asked == what]

    def PullTaskInput(self, _):
        context = Context(1, 7, {"device": "here"}, RecordDict(), {})
        run = run_to_proto(Run.create_empty(run_id=1))
        return PullTaskInputResponse(context=context_to_proto(context), run=run, task_id=5)

    def PullMessages(self, _):
        return PullAppMessagesResponse(messages_list=[self.light], message_object_trees=[self.tree])

    def PullObject(self, request):
        self.note("object")
        if self.kills_once and self.is_first():
            os.kill(os.getpid(), signal.SIGKILL)
        content = self.parts[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, _):
        self.note("confirmed")

    def SendTaskHeartbeat(self, _):
        self.note("heartbeat")
        return SendTaskHeartbeatResponse(success=True)

    def PushMessages(self, request):
        (light,) = request.messages_list
        (self.folder / "reply").write_bytes(light.SerializeToString())
        return PushAppMessagesResponse(objects_to_push=[])

    def PushObject(self, _):
        return PushObjectResponse(stored=True)

    def PushTaskOutput(self, request):
        self.note(f"ended-{request.sub_status}")
        return PushTaskOutputResponse()

    def reply(self):
        return type(self.light).FromString((self.folder / "reply").read_bytes())

    def close(self):
        pass


@pytest.fixture
def node(tmp_path):
    return SuperNode(tmp_path)


@pytest.fixture
def box(node, tmp_path, monkeypatch):
    """A box whose client app keeps what it was asked in a file."""
    (tmp_path / "device").mkdir()
    found = Answering("nowhere:1", tmp_path / "device")
    monkeypatch.setattr(found, "client", lambda *_: node)

    def app(message, context):
        (tmp_path / "heard").write_bytes(pickle.dumps((message.content, context.node_config)))
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setattr(answering, "app", app)
    return found


def test_a_message_is_answered_and_never_in_the_process_that_forks(box, node, tmp_path):
    box.answer("token")
    content, config = pickle.loads((tmp_path / "heard").read_bytes())
    assert protocol.text(content) == {"n": 3} and config == {"device": "here"}
    model = protocol.unpack(content.array_records["model"])
    assert model["w"].tolist() == [0, 1, 2, 3, 4]
    assert node.reply().metadata.reply_to_message_id == node.tree.object_id
    assert node.asked("object") and os.getpid() not in node.asked("object")
    assert len(node.asked("confirmed")) == 1 and node.asked("ended-completed")
    assert set(node.asked("object")) <= set(node.asked("heartbeat")), "heard while it is received"
    assert not list((tmp_path / "device").iterdir())


def test_a_fork_that_is_killed_while_it_receives_is_forked_again(box, node):
    node.kills_once = True
    box.answer("token")
    assert len(set(node.asked("object"))) == 2
    assert not node.reply().HasField("error")
    assert len(node.asked("confirmed")) == 1


def test_a_message_that_always_kills_is_answered_with_why(box, node, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(answering, "app", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    box.answer("token")
    assert node.reply().error.reason == "killed 3 times; is the box short of memory?"
    assert node.asked("ended-failed") == [os.getpid()]
    said = capfd.readouterr().out
    assert said.count("train.install was killed by signal 9; once more") == 3
    assert not list((tmp_path / "device").iterdir())


def test_a_full_disk_is_told_once(box, node, monkeypatch, capfd):
    def full(*_):
        raise DiskError("no space left")

    monkeypatch.setattr(answering, "write_whole", full)
    box.answer("token")
    assert node.reply().error.reason == "DiskError on the device"
    assert not node.asked("confirmed") and len(node.asked("ended-completed")) == 1
    assert "train.install was not passed on: no space left" in capfd.readouterr().out


def test_what_a_dead_box_has_left_is_removed(box, tmp_path):
    for name in ("message", ".message.12.part", "other"):
        (tmp_path / "device" / name).touch()
    box.tidy()
    assert [path.name for path in (tmp_path / "device").iterdir()] == ["other"]
