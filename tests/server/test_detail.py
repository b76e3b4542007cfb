import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedspeech import protocol
from server.detail import detail


@pytest.fixture(autouse=True, scope="module")
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


RACE = {"kept": ["b", "a"], "words": {"a": 8, "b": 40, "c": 4}}


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        (protocol.PERSONALIZE, {"losses": [3.0, 1.2345]}, "loss 1.23"),
        (
            protocol.WORD_ERRORS,
            {"errors": {"a": 5, "b": 3}, "words": 20, "race": None},
            "best candidate 15.0 % WER",
        ),
        (protocol.WORD_ERRORS, {"errors": {}, "words": 0}, ""),
        (
            protocol.WORD_ERRORS,
            {"errors": {"a": 1, "b": 4, "c": 0}, "words": 100, "race": RACE},
            "best candidate 10.0 % WER",
        ),
        (
            protocol.EVALUATE,
            {"errors": [[1, 2], [0, 1]], "words": [3, 5]},
            "best alpha 12.5 % WER",
        ),
        (protocol.DESCRIBE, {"speaker": "anna"}, ""),
    ],
)
def test_what_an_answer_comes_to(kind, said, expected):
    assert detail(Message(protocol.content(said), 1, kind)) == expected


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"train_loss": 2.5, "num-examples": 3}, "loss 2.50"),
        ({"word_error_rate": 0.25, "num-examples": 3}, "25.0 % WER"),
        ({"num-examples": 3}, ""),
    ],
)
def test_flowers_plain_answers(metrics, expected):
    content = RecordDict({"metrics": MetricRecord(metrics)})
    assert detail(Message(content, 1, protocol.PLAIN_TRAIN)) == expected
