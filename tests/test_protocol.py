import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import array as flower_array
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from fedspeech import protocol
from fedspeech.errors import ModelError
from fedspeech.tensors import sha256


@pytest.fixture(autouse=True, scope="module")
def identity():
    """What Flower asks for before the first message is made."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def model() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "tdnn.0.weight": torch.randn(4, 3, 5, generator=draw),
        "b": torch.tensor([0.1, -0.0, float("inf"), float("nan"), 1e-45]),
        "double": torch.randn(3, generator=draw, dtype=torch.float64),
        "half": torch.randn(2, 2, generator=draw).half(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
    }


def through_the_network(content: RecordDict) -> RecordDict:
    """The same content after Flower has serialized it."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def message(text=None, kind=protocol.INSTALL, node=5, group="1", **arrays) -> Message:
    return Message(protocol.content(text or {}, **arrays), node, kind, group_id=group)


# Tensors and text.


def test_a_message_that_was_looked_into_is_gone_with_its_last_reference():
    """And not only when Python looks for cycles: it may carry hundreds of megabytes."""
    gc.disable()
    try:
        one = message({"a": 1}, model=protocol.pack(model()))
        assert protocol.text(one.content) == {"a": 1}
        assert list(protocol.arrays(one.content)) == ["model"]
        protocol.identity(one, "anna")
        protocol.size(one.content)
        seen = weakref.ref(protocol.arrays(one.content)["model"])
        del one
        assert seen() is None
    finally:
        gc.enable()


def test_tensors_come_back_to_the_bit():
    before = model()
    after = protocol.unpack(through_the_network(RecordDict({"m": protocol.pack(before)}))["m"])
    assert list(after) == sorted(before)
    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {
        n: (t.dtype, t.shape) for n, t in before.items()
    }
    assert sha256(after) == sha256(before)


def test_a_large_tensor_travels_in_pieces_that_a_slow_link_can_carry(monkeypatch):
    """Twice 256 KiB within the 30 s that Flower waits for an answer, at 140 kbit/s."""
    monkeypatch.setattr(flower_array, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 5 << 20)
    protocol.cut_into_pieces()
    values = torch.arange(250_000, dtype=torch.float32)
    parts = get_all_nested_objects(RecordDict({"m": protocol.pack({"a": values})})).values()
    sizes = sorted(len(part.deflate()) for part in parts)
    assert sizes[-1] < 2**18 + 100 and 8 * 2 * sizes[-1] / 30 < 140_000
    assert sum(size > 2**17 for size in sizes) == 4


def test_unpacked_tensors_can_be_written_to():
    record = protocol.pack({"a": torch.zeros(2)})
    protocol.unpack(record)["a"].add_(1)
    assert protocol.unpack(record)["a"].tolist() == [0, 0]


def test_what_is_not_an_array_is_told():
    broken = ArrayRecord({"a": Array("float32", (2,), "numpy.ndarray", b"no array at all")})
    with pytest.raises(ModelError, match="a tensor of the message cannot be read"):
        protocol.unpack(broken)


def test_text_comes_back():
    said = {"alphas": [0.0, 0.5], "held": True, "base": None, "words": {"ä": 3}}
    content = protocol.content(said, model=protocol.pack(model()))
    assert protocol.text(through_the_network(content)) == said
    assert protocol.text(RecordDict({"m": protocol.pack(model())})) == {}


# Sizes.


@pytest.mark.parametrize(
    "content",
    [
        {"text": protocol.write_text({})},
        {"text": protocol.write_text({"vocabulary": ["ä" * 50] * 200})},
        {"difference": protocol.pack(model()), "text": protocol.write_text({"a": 1})},
        {"big": protocol.pack({"x": torch.zeros(500, 500)})},
        {"s0123": protocol.pack({"x": torch.zeros(9)}), "s4567": protocol.pack(model())},
        {"config": ConfigRecord({"json": "{}", "server-round": 3, "blob": b"x" * 999, "on": True})},
        {"metrics": MetricRecord({"loss": 0.5, "num-examples": 30, "list": [1.0] * 100})},
        {"": protocol.pack({"": torch.zeros(()), "ä" * 70: torch.zeros(0, 3), "b": torch.ones(1)})},
        {"a" * 200: protocol.pack({f"{n}": torch.zeros(n) for n in (31, 32, 4095, 4096, 524288)})},
        {"diffs": protocol.pack_diffs([b"", b"x" * 127, b"y" * 20000]), "none": ArrayRecord()},
        {},
    ],
)
def test_size_is_what_flower_sends(content):
    records = RecordDict(content)
    assert protocol.size(records) == len(recorddict_to_proto(records).SerializeToString())


# What a message asks.


def test_identity_ignores_tensors_the_node_and_who_signs():
    said = {"model": "abc", "held": False}
    one = message(said, model=protocol.pack(model()))
    known = protocol.identity(one, "anna")
    assert known == protocol.identity(message(said), "anna")
    assert known == protocol.identity(message(said, node=99), "anna")
    assert known == protocol.identity(copy.deepcopy(one), "anna")
    signed = copy.deepcopy(one)
    signed.content[protocol.SIGNED] = protocol.write_text({protocol.SIGNED: ["by another key"]})
    assert known == protocol.identity(signed, "anna")
    assert protocol.statements(signed.content) == ["by another key"]
    assert protocol.statements(one.content) == []


@pytest.mark.parametrize(
    "change",
    [
        {"text": {"model": "abd", "held": False}},
        {"text": {"model": "abc", "held": True}},
        {"kind": protocol.EVALUATE},
        {"group": "2"},
        {"speaker": "bert"},
        {"arrays": "0123"},
    ],
)
def test_identity_changes_with_whatever_is_asked(change):
    said = {"text": {"model": "abc", "held": False}}
    other = {**said, **change}
    speaker, arrays = other.pop("speaker", "anna"), other.pop("arrays", "")
    found = protocol.identity(message(**other), speaker, arrays)
    assert found != protocol.identity(message(**said), "anna")


def test_identity_sees_the_round_of_flowers_own_messages():
    def asked(round: int) -> Message:
        config = ConfigRecord({"json": "{}", "server-round": round})
        return Message(RecordDict({"config": config}), 5, protocol.PLAIN_TRAIN)

    assert protocol.identity(asked(1), "anna") == protocol.identity(asked(1), "anna")
    assert protocol.identity(asked(1), "anna") != protocol.identity(asked(2), "anna")


# Errors.


def test_a_failure_is_one_line():
    asked = message()
    assert protocol.failure(Message(protocol.content({}), reply_to=asked)) is None
    for reason, told in (
        ("Traceback\n  File x\nValueError: no\n", "ValueError: no"),
        ("it broke", "it broke"),
        ("", "Flower's error 2"),
    ):
        assert protocol.failure(Message(Error(2, reason), reply_to=asked)) == told


# Answers.

RACE = {"k": 1, "ends": True}
RACED = {
    "kept": ["b"],
    "words": {"a": 4, "b": 9},
    "decodings": 3,
    "exhaustive": 4,
    "confident": False,
}
EVALUATED = {"words": [2, 1], "errors": [[0, 1], [2, 2]], "chosen": 0.5}
GOOD = [
    (
        protocol.DESCRIBE,
        {},
        {"speaker": "s01", "seconds": 280, "utterances": 3, "generation": ""},
    ),
    (
        protocol.DESCRIBE,
        {},
        {
            "speaker": "s01",
            "seconds": 280,
            "utterances": 3,
            "generation": "",
            "budgets": {"base": "10x", "personal": "40 kB"},
        },
    ),
    (protocol.PERSONALIZE, {}, {"losses": [1.5, float("nan")], "skipped": 0, "personal": "ab"}),
    (
        protocol.WORD_ERRORS,
        {"candidates": {"a": "", "b": ""}, "part": "train"},
        {"errors": {"a": 0, "b": 3}, "words": 9, "part": "train"},
    ),
    (
        "query.word_errors in a race",
        {"candidates": {"a": "", "b": ""}, "part": "train", "race": {**RACE, "ends": False}},
        {"errors": {}, "words": 0, "part": "train"},
    ),
    (
        "query.word_errors at its end",
        {"candidates": {"a": "", "b": ""}, "part": "train", "race": RACE},
        {"errors": {"a": 2, "b": 1}, "words": 9, "part": "train", "race": RACED},
    ),
    (protocol.INSTALL, {"model": "abc"}, {"installed": "abc"}),
    (protocol.EVALUATE, {"alphas": [0.0, 1.0], "choose": [0.5, 1.0]}, EVALUATED),
    (protocol.EVALUATE, {"alphas": [0.0, 1.0], "choose": []}, {**EVALUATED, "chosen": None}),
]


@pytest.mark.parametrize(("kind", "asked", "said"), GOOD)
def test_what_was_asked_for_is_accepted(kind, asked, said):
    protocol.check_answer(kind.split()[0], protocol.content(asked), protocol.content(said))


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        (protocol.DESCRIBE, {"speaker": "../../etc/passwd"}, "speaker: String should match"),
        (protocol.DESCRIBE, {"speaker": "a/b"}, "speaker: String should match"),
        (protocol.DESCRIBE, {"speaker": ""}, "speaker: String should match"),
        (protocol.DESCRIBE, {"speaker": "s01\n"}, "speaker: String should match"),
        (protocol.DESCRIBE, {"seconds": float("nan")}, "seconds: Input should be"),
        (protocol.DESCRIBE, {"utterances": -1}, "utterances: Input should be greater"),
        (protocol.DESCRIBE, {"budgets": {"base": "ten"}}, "budgets.base: budget: expected bytes"),
        (protocol.DESCRIBE, {"budgets": {"all": "10x"}}, "budgets.all"),
        (protocol.PERSONALIZE, {"losses": []}, "losses: List should have at least 1"),
        (protocol.PERSONALIZE, {"skipped": "3"}, "skipped: Input should be a valid integer"),
        (protocol.WORD_ERRORS, {"errors": {"a": 0}}, "expected the errors of each candidate"),
        (protocol.WORD_ERRORS, {"part": "test"}, "expected the errors of each candidate on train"),
        (protocol.WORD_ERRORS, {"errors": {"a": 0, "b": 1.5}}, "errors.b: Input should be a valid"),
        ("query.word_errors in a race", {"errors": {"a": 0, "b": 0}}, "the errors of each"),
        ("query.word_errors at its end", {"errors": {}}, "expected the errors of each candidate"),
        ("query.word_errors at its end", {"race": None}, "expected how the race ended"),
        ("query.word_errors at its end", {"race": {"kept": ["b"]}}, "race.words: Field required"),
        (
            "query.word_errors at its end",
            {"race": {**RACED, "words": {"a": 4}}},
            "expected the words of each candidate",
        ),
        *(
            ("query.word_errors at its end", {"race": {**RACED, "kept": kept}}, f"kept {kept}, ex")
            for kept in ([], ["a", "b"], ["b", "b"], ["c"])
        ),
        (protocol.INSTALL, {"installed": "def"}, "installed def, expected abc"),
        (protocol.EVALUATE, {"errors": [[0, 1]]}, "one number of errors for each alpha"),
        (protocol.EVALUATE, {"errors": [[0, 1], [2]]}, "one number of errors for each alpha"),
        (protocol.EVALUATE, {"words": [2, 0]}, "words.1: Input should be greater than or equal"),
        (protocol.EVALUATE, {"chosen": 0.7}, "chose alpha 0.7, expected one of"),
        (protocol.EVALUATE, {"chosen": None}, "chose alpha None, expected one of"),
    ],
)
def test_what_was_not_asked_for_is_refused(kind, change, told):
    asked, said = next((asked, said) for of, asked, said in GOOD if of == kind)
    wrong = protocol.content({**said, **change})
    with pytest.raises(ModelError) as caught:
        protocol.check_answer(kind.split()[0], protocol.content(asked), wrong)
    assert str(caught.value).startswith("malformed answer: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [ConfigRecord({}), ConfigRecord({"json": "{"}), ConfigRecord({"json": "[1, 2]"}), None],
)
@pytest.mark.parametrize(("kind", "asked", "said"), GOOD)
def test_an_answer_without_text_is_refused(kind, asked, said, record):
    content = RecordDict({} if record is None else {protocol.TEXT: record})
    with pytest.raises(ModelError, match="malformed answer"):
        protocol.check_answer(kind.split()[0], protocol.content(asked), content)


@pytest.mark.parametrize("kind", [protocol.PLAIN_TRAIN, protocol.PLAIN_EVALUATE])
@pytest.mark.parametrize(
    ("records", "accepted"),
    [
        ({"metrics": MetricRecord({"num-examples": 3})}, True),
        ({"metrics": MetricRecord({"num-examples": 3.5, "loss": 1.0})}, True),
        ({}, False),
        ({"metrics": MetricRecord({"loss": 1.0})}, False),
        ({"metrics": MetricRecord({"num-examples": 0})}, False),
        ({"metrics": MetricRecord({"num-examples": float("inf")})}, False),
        ({"metrics": MetricRecord({"num-examples": float("nan")})}, False),
        ({"metrics": MetricRecord({"num-examples": [3, 4]})}, False),
        ({n: MetricRecord({"num-examples": 3}) for n in ("metrics", "more")}, False),
    ],
)
def test_flowers_strategies_get_a_weight_with_every_answer(kind, records, accepted):
    asked, said = RecordDict(), RecordDict(records)
    if accepted:
        protocol.check_answer(kind, asked, said)
    else:
        with pytest.raises(ModelError, match="one record with num-examples"):
            protocol.check_answer(kind, asked, said)


def test_arrays_are_numpys_so_that_other_clients_can_answer():
    record = protocol.pack({"x": torch.arange(3.0)})
    assert np.array_equal(record["x"].numpy(), np.arange(3, dtype=np.float32))
