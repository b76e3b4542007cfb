"""Replies of which some are still on their way, from a SuperLink of a few lines."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from commands import until
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from server.patient_grid import PatientGrid


class SuperLink:
    """The runtime interface as far as replies go; of a message, `missing` is not there yet."""

    def __init__(self):
        self.begun, self.objects, self.missing = [], {}, set()
        self.asked, self.confirmed = [], []

    def begin(self, number, values):
        """A box begins to send its reply to a message; the id of its tensor's chunk."""
        content = RecordDict(
            {"said": ConfigRecord({"number": number}), "model": ArrayRecord({"w": Array(values)})}
        )
        question = Message(RecordDict(), 11, "query")
        question.metadata.__dict__["_message_id"] = number
        reply = Message(content, reply_to=question)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        parts = get_all_nested_objects(reply)
        self.objects.update({id: part.deflate() for id, part in parts.items()})
        light = message_to_proto(remove_content_from_message(reply))
        self.begun.append((number, light, get_object_tree(reply)))
        (chunk,) = [id for id, part in parts.items() if type(part).__name__ == "ArrayChunk"]
        return chunk

    def PullMessages(self, request):
        self.asked.append(list(request.message_ids))
        found = [one for one in self.begun if one[0] in request.message_ids]
        self.begun = [one for one in self.begun if one not in found]
        return PullAppMessagesResponse(
            messages_list=[light for _, light, _ in found],
            message_object_trees=[tree for _, _, tree in found],
        )

    def PullObject(self, request):
        there = request.object_id not in self.missing
        content = self.objects[request.object_id] if there else b""
        return PullObjectResponse(object_found=True, object_available=there, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)

    def close(self):
        pass


@pytest.fixture
def link():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return SuperLink()


@pytest.fixture
def grid(link):
    found = PatientGrid("nowhere:1", True, None, token="t")
    found._client = link
    found._run = SimpleNamespace(run_id=1)
    yield found
    found.close()


def said(replies):
    return {
        reply.metadata.reply_to_message_id: reply.content.array_records["model"]["w"].numpy()
        for reply in replies
    }


def pulled(grid, numbers):
    found = []
    until(lambda: found.extend(grid.pull_messages(numbers)) or found, 20)
    return said(found)


def test_who_is_slow_holds_up_nobody(grid, link):
    slow, quick = np.arange(4.0), np.arange(3.0)
    link.missing = {link.begin("slow", slow)}
    begin = time.monotonic()
    assert grid.pull_messages(["slow", "quick"]) == []
    link.begin("quick", quick)
    found = pulled(grid, ["slow", "quick"])
    assert list(found) == ["quick"] and (found["quick"] == quick).all()
    assert time.monotonic() - begin < 5, "the slow one was not waited for"
    assert not any("slow" in numbers for numbers in link.asked[1:]), "it is given out once only"
    link.missing = set()
    found = pulled(grid, ["slow"])
    assert list(found) == ["slow"] and (found["slow"] == slow).all()
    assert len(link.confirmed) == 2
