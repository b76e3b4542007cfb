import gc
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import Around
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedspeech import protocol, tensors
from fedspeech.errors import RunError
from fedspeech.protocol import Member
from fedspeech.simulation.grid import SimulatedGrid, answer
from server import recorded_grid, underway
from server.journal import Journal
from server.recorded_grid import Keeper, RecordedGrid

NODES = 6
MODEL = protocol.pack({"x": torch.zeros(1000)})
app = ClientApp()


@app.train("echo")
def echo(message: Message, context) -> Message:
    """Say what was asked, and send the tensors back with the node's number added."""
    asked = protocol.text(message.content)
    if asked.get("raise"):
        raise RuntimeError("no")
    sent = message.content.array_records
    back = {
        name: protocol.pack({k: t + context.node_id for k, t in protocol.unpack(r).items()})
        for name, r in sent.items()
    }
    return Message(protocol.content({"said": asked}, **back), reply_to=message)


@app.query()
def query(message: Message, context) -> Message:
    return Message(protocol.content({}), reply_to=message)


@app.train()
def plain(message: Message, context) -> Message:
    """Add the node's number to each value; nodes weigh as much as their number."""
    sent = protocol.unpack(message.content["arrays"])
    number = context.node_id - 1000
    back = ArrayRecord({name: tensor + number for name, tensor in sent.items()})
    metrics = MetricRecord({"num-examples": number, "loss": 1.0})
    return Message(RecordDict({"arrays": back, "metrics": metrics}), reply_to=message)


@app.evaluate()
def judge(message: Message, context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "loss": 2.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class ShuffledGrid(SimulatedGrid):
    """Answers some of what it holds, in any order, and some nodes never."""

    def __init__(self, silent: tuple[int, ...] = ()) -> None:
        super().__init__(lambda: [{}] * NODES)
        self.silent, self.waiting = silent, {}
        self.pushed, self.most_waiting = 0, 0
        self.draw = random.Random(7)

    def push_messages(self, messages):
        numbered = {self._number(message): message for message in messages}
        self.waiting.update(numbered)
        self.pushed += len(numbered)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        return list(numbered)

    def pull_messages(self, message_ids):
        ready = [
            number
            for number in message_ids
            if self.waiting[number].metadata.dst_node_id not in self.silent
        ]
        chosen = self.draw.sample(ready, min(2, len(ready)))
        messages = [self.waiting.pop(number) for number in chosen]
        return [answer(app, m, self._contexts[m.metadata.dst_node_id]) for m in messages]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


def recorded(grid, folder: Path) -> RecordedGrid:
    """Speakers e, d, c … sit at the nodes in reverse, so that order is not by accident."""
    made = RecordedGrid(grid, Journal(folder / "journal.sqlite"), folder)
    nodes = list(grid.get_node_ids())
    made.know(Member(f"s{NODES - i}", node, 60.0, 3, "") for i, node in enumerate(nodes))
    return made


def messages(grid, texts, arrays=None, made=None, kind="train.echo"):
    for node, text in zip(grid.get_node_ids(), texts, strict=False):
        if made is not None:
            made.append(node)
        content = protocol.content(text, **({} if arrays is None else {"model": arrays}))
        yield grid.create_message(content, kind, node, "1")


def said(replies) -> list:
    return [protocol.text(reply.content)["said"] for reply in replies]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(recorded_grid, "POLL_SECONDS", 0.01)


def test_nodes_come_in_the_order_of_their_speakers(folder):
    grid = ShuffledGrid()
    assert list(recorded(grid, folder).get_node_ids()) == list(grid.get_node_ids())[::-1]


def test_replies_come_in_the_order_of_the_messages(folder):
    grid = recorded(ShuffledGrid(), folder)
    texts = [{"number": i} for i in range(NODES)]
    replies = list(grid.send_and_receive(messages(grid, texts)))
    assert said(replies) == texts
    assert [r.metadata.src_node_id for r in replies] == list(grid.get_node_ids())


def test_messages_are_made_as_they_are_sent(folder, monkeypatch):
    """Never more than the window are made and not answered."""
    monkeypatch.setattr(underway, "MOST_UNDERWAY", 2)
    made, seen = [], []

    class Watch(Around):
        def received(self, reply):
            seen.append(len(made))
            return reply

    inner = ShuffledGrid()
    grid = recorded(Watch(inner), folder)
    list(grid.send_and_receive(messages(grid, [{"n": i} for i in range(NODES)], made=made)))
    assert inner.most_waiting == 2
    assert seen[0] == 2
    assert made == list(grid.get_node_ids())


def test_what_is_underway_is_bounded_by_its_tensors(folder, monkeypatch):
    """A reply is as large as those of its type were, or before there is one as what was sent."""
    size = len(next(iter(MODEL.values())).data)
    monkeypatch.setattr(underway, "MOST_BYTES_UNDERWAY", 4 * size)
    inner = ShuffledGrid()
    grid = recorded(inner, folder)

    def most(question: int, kind: str, *models) -> int:
        """How many were underway at most when each node was sent its model with a question."""
        inner.most_waiting = 0
        asked = list(messages(grid, [{"question": question}] * NODES, kind=kind))
        for message, model in zip(asked, models, strict=False):
            message.content["model"] = model
        list(grid.send_and_receive(asked))
        return inner.most_waiting

    own = [protocol.pack({"x": torch.full((1000,), float(i))}) for i in range(NODES)]
    assert most(1, "train.echo", *own) == 2  # one set each way, for each
    assert most(2, "train.echo", *[own[0]] * NODES) == 4  # what goes to all is held anyway
    # Nothing comes down, and of this type nothing has come up yet.
    assert most(3, "query") == 4
    assert most(4, "query") == NODES


def test_every_worker_has_a_message_however_large_they_are(folder, monkeypatch):
    monkeypatch.setattr(underway, "MOST_BYTES_UNDERWAY", 1)
    inner = ShuffledGrid()
    inner.at_once = 4
    grid = recorded(inner, folder)
    list(grid.send_and_receive(messages(grid, [{}] * NODES, MODEL)))
    assert inner.most_waiting == 4


def test_replies_are_kept_while_messages_are_still_made(folder):
    inner = ShuffledGrid()
    inner.ready = lambda: len(inner.waiting) >= 3
    grid = recorded(inner, folder)
    journal = Journal(folder / "journal.sqlite")
    known = []

    def watched():
        for message in messages(grid, [{}] * NODES):
            known.append(len(list(journal.ledger())) // 2)
            yield message

    list(grid.send_and_receive(watched()))
    assert known == [0, 0, 0, 2, 2, 4]  # the grid answers two at a time


def test_what_was_answered_before_a_failure_is_kept(folder):
    """Three replies come together; keeping the last of them fails."""

    class Together(ShuffledGrid):
        def pull_messages(self, message_ids):
            return [
                answer(app, self.waiting.pop(number), self._contexts[1001 + index])
                for index, number in enumerate(message_ids)
            ]

    def keep(speaker, content):
        if speaker == "s3":
            raise RunError("no space left on device")
        return protocol.content({})

    grid = recorded(Together(), folder)
    grid.keep("train.echo", Keeper(keep, lambda speaker, content: True))
    with pytest.raises(RunError, match="no space left"):
        grid.send_and_receive(messages(grid, [{}] * 4, MODEL))
    rows = list(Journal(folder / "journal.sqlite").ledger())[1::2]
    assert [(speaker, up > 0) for _, speaker, *_, up in rows] == [
        ("s1", True),
        ("s2", True),
        ("s3", False),
        ("s4", False),
    ]


def test_what_was_sent_before_the_server_ended_counts_although_less_is_sent_again(folder):
    """The device holds the model by then, and the question is the same one."""

    class Ending(ShuffledGrid):
        def pull_messages(self, message_ids):
            raise RunError("the server ends")

    grid = recorded(Ending(), folder)
    with pytest.raises(RunError, match="ends"):
        grid.send_and_receive(messages(grid, [{}], MODEL))
    for _ in range(2):
        grid = recorded(ShuffledGrid(), folder)
        list(grid.send_and_receive(messages(grid, [{}])))
    (down, up) = Journal(folder / "journal.sqlite").ledger()
    assert down[-1] == protocol.size(protocol.content({}, model=MODEL))
    assert up[-1] == protocol.size(protocol.content({"said": {}}))


def test_they_are_sent_whether_or_not_the_replies_are_read(folder):
    inner = ShuffledGrid()
    grid = recorded(inner, folder)
    grid.send_and_receive(messages(grid, [{}] * NODES))
    assert inner.pushed == NODES


def test_who_does_not_answer_is_an_error_after_the_timeout(folder, quick):
    inner = ShuffledGrid(silent=(1002, 1005))
    grid = recorded(inner, folder)
    started = time.monotonic()
    replies = list(grid.send_and_receive(messages(grid, [{}] * NODES), timeout=0.2))
    assert 0.2 <= time.monotonic() - started < 5
    late = {r.metadata.src_node_id: r.error.reason for r in replies if r.has_error()}
    assert late == dict.fromkeys((1002, 1005), "no answer within 0.2 s")
    assert len(replies) == NODES
    inner.silent = ()
    again = list(grid.send_and_receive(messages(grid, [{}] * NODES), timeout=0.2))
    assert not any(reply.has_error() for reply in again)
    assert inner.pushed == NODES + 2  # only the late ones are asked again


def test_what_was_answered_is_not_asked_again(folder):
    texts = [{"number": i} for i in range(NODES)]
    model = protocol.pack({"x": torch.randn(50)})
    grid = recorded(ShuffledGrid(), folder)
    before = list(grid.send_and_receive(messages(grid, texts, model)))
    ledger = list(Journal(folder / "journal.sqlite").ledger())
    inner = ShuffledGrid()
    later = recorded(inner, folder)
    after = list(later.send_and_receive(messages(later, texts, model)))
    assert inner.pushed == 0
    for old, new in zip(before, after, strict=True):
        assert protocol.text(old.content) == protocol.text(new.content)
        pair = [protocol.unpack(reply.content["model"]) for reply in (old, new)]
        assert tensors.sha256(pair[0]) == tensors.sha256(pair[1])
    assert list(Journal(folder / "journal.sqlite").ledger()) == ledger
    assert len(ledger) == 2 * NODES


def test_tensors_are_read_back_to_the_bit_and_counted(folder):
    grid = recorded(ShuffledGrid(), folder)
    model = {"x": torch.randn(5, 7), "half": torch.randn(3).half()}
    text = {"number": 1}
    replies = list(grid.send_and_receive(messages(grid, [text] * NODES, protocol.pack(model))))
    for reply in replies:
        node = reply.metadata.src_node_id
        expected = {name: tensor + node for name, tensor in model.items()}
        assert tensors.sha256(protocol.unpack(reply.content["model"])) == tensors.sha256(expected)
    down = protocol.size(protocol.content(text, model=protocol.pack(model)))
    up = protocol.size(protocol.content({"said": text}, model=protocol.pack(model)))
    rows = list(Journal(folder / "journal.sqlite").ledger())
    assert rows[::2] == [(1, f"s{i + 1}", "down", "train.echo", down) for i in range(NODES)]
    assert rows[1::2] == [(1, f"s{i + 1}", "up", "train.echo", up) for i in range(NODES)]


def test_the_ledger_is_in_the_order_of_asking(folder):
    """Round by round, whoever answered first; a round is named by the group of its messages."""
    grid = recorded(ShuffledGrid(), folder)
    for group in ("2", "1"):
        asked = [
            grid.create_message(protocol.content({"n": n}), "train.echo", node, group)
            for n, node in enumerate(reversed(list(grid.get_node_ids())))
        ]
        list(grid.send_and_receive(asked))
    rows = list(Journal(folder / "journal.sqlite").ledger())[::2]
    backwards = [f"s{i}" for i in range(NODES, 0, -1)]
    assert [(round, speaker) for round, speaker, *_ in rows] == [
        (round, speaker) for round in (1, 2) for speaker in backwards
    ]


def test_what_brought_no_answer_was_sent_all_the_same_and_counts_once(folder, quick):
    """One node raises, one is silent; asked again, the one answers and the other still does not."""
    inner = ShuffledGrid(silent=(1002,))
    text = {"raise": True}
    asked = [text if i == 2 else {} for i in range(NODES)]
    for _ in range(2):
        grid = recorded(inner, folder)
        list(grid.send_and_receive(messages(grid, asked, MODEL), timeout=0.2))
        rows = list(Journal(folder / "journal.sqlite").ledger())
        nodes = list(grid.get_node_ids())
        assert [row[1] for row in rows[::2]] == [f"s{i + 1}" for i in range(NODES)]
        for node, (_, _, way, _, down), (*_, up) in zip(nodes, rows[::2], rows[1::2], strict=True):
            said = protocol.content(asked[nodes.index(node)], model=MODEL)
            assert (way, down) == ("down", protocol.size(said))
            if node == 1002:
                assert up == 0
            elif node == nodes[2]:
                assert up == len("RuntimeError: no")
            else:
                assert up > protocol.size(protocol.content({}, model=MODEL))
    inner.silent = ()
    grid = recorded(inner, folder)
    list(grid.send_and_receive(messages(grid, asked, MODEL), timeout=5))
    rows = list(Journal(folder / "journal.sqlite").ledger())
    assert len(rows) == 2 * NODES
    assert all(up > 0 for *_, up in rows[1::2])


def test_errors_are_asked_again(folder):
    inner = ShuffledGrid()
    grid = recorded(inner, folder)
    texts = [{"raise": i == 2} for i in range(NODES)]
    for times in (1, 2):
        replies = list(grid.send_and_receive(messages(grid, texts)))
        assert [r.has_error() for r in replies] == [i == 2 for i in range(NODES)]
        assert protocol.failure(replies[2]) == "RuntimeError: no"
        assert inner.pushed == NODES - 1 + times


def test_a_keeper_decides_what_is_remembered(folder):
    kept = {}

    def keep(speaker, content):
        if speaker == "s2":
            raise tensors.ModelError("not this one")
        kept[speaker] = protocol.unpack(content["model"])
        return protocol.content({"said": speaker})

    inner = ShuffledGrid()
    grid = recorded(inner, folder)
    grid.keep("train.echo", Keeper(keep, lambda speaker, content: speaker in kept))
    model = protocol.pack({"x": torch.zeros(2)})
    replies = list(grid.send_and_receive(messages(grid, [{}] * NODES, model)))
    assert [protocol.failure(reply) for reply in replies][1] == "not this one"
    assert said(r for r in replies if not r.has_error()) == sorted(kept)
    assert not (folder / "answers").exists()
    del kept["s4"]
    list(grid.send_and_receive(messages(grid, [{}] * NODES, model)))
    assert inner.pushed == NODES + 2  # the refused one, and the one that was lost
    assert sorted(kept) == ["s1", "s3", "s4", "s5", "s6"]


def test_two_sets_of_tensors_in_an_answer_are_refused(folder):
    grid = recorded(ShuffledGrid(), folder)
    record = protocol.pack({"x": torch.zeros(2)})
    node = next(iter(grid.get_node_ids()))
    content = protocol.content({}, model=record, more=record)
    (reply,) = grid.send_and_receive([grid.create_message(content, "train.echo", node, "1")])
    assert protocol.failure(reply) == "malformed answer: 2 sets of tensors, expected one"


# Flower's own strategies.


def flower(grid, rounds: int, begin: dict[str, torch.Tensor]):
    random.seed(1)
    config = ConfigRecord({"json": "{}"})
    strategy = FedAvg()
    return strategy.start(grid, ArrayRecord(begin), num_rounds=rounds, train_config=config)


def test_fedavg_is_the_weighted_average(folder):
    """Node i of 1 … 6 adds i and weighs i: each round adds sum(i * i) / sum(i)."""
    begin = {"x": torch.tensor([0.25, -3.0]), "y": torch.zeros(2, 2)}
    result = flower(recorded(ShuffledGrid(), folder), 2, begin)
    numbers = np.arange(1, NODES + 1)
    step = (numbers**2).sum() / numbers.sum()
    found = protocol.unpack(result.arrays)
    for name, tensor in begin.items():
        assert np.allclose(found[name].numpy(), tensor.numpy() + 2 * step, atol=1e-6)


def test_fedavg_again_asks_nobody_and_gives_the_same_bits(folder):
    begin = {"x": torch.randn(20)}
    first = flower(recorded(ShuffledGrid(), folder), 2, begin)
    inner = ShuffledGrid()
    again = flower(recorded(inner, folder), 2, begin)
    assert inner.pushed == 0
    hashes = [tensors.sha256(protocol.unpack(result.arrays)) for result in (first, again)]
    assert hashes[0] == hashes[1]


def test_another_model_is_another_question(folder):
    """Flower's messages name no hash: what they carry decides."""
    flower(recorded(ShuffledGrid(), folder), 1, {"x": torch.zeros(3)})
    inner = ShuffledGrid()
    result = flower(recorded(inner, folder), 1, {"x": torch.ones(3)})
    assert inner.pushed == 2 * NODES
    assert protocol.unpack(result.arrays)["x"][0] > 4


def test_an_answer_unlike_what_was_sent_is_refused(folder):
    class Poisoned(Around):
        def received(self, reply):
            number = reply.metadata.src_node_id - 1000
            bad = {1: torch.tensor([float("nan"), 0]), 2: torch.zeros(3), 3: torch.zeros(0)}
            if number in bad and "arrays" in reply.content:
                reply.content["arrays"] = protocol.pack({"x": bad[number]})
            return reply

    grid = recorded(Poisoned(ShuffledGrid()), folder)
    result = flower(grid, 1, {"x": torch.zeros(2)})
    numbers = np.arange(4, NODES + 1)
    expected = (numbers**2).sum() / numbers.sum()
    assert np.allclose(protocol.unpack(result.arrays)["x"].numpy(), expected)


def test_error_replies_keep_their_reason(folder):
    class Broken(Around):
        def sent(self, message):
            self.asked = message

        def received(self, reply):
            return Message(Error(13, "line one\nthe network is down"), reply_to=self.asked)

    grid = recorded(Broken(ShuffledGrid()), folder)
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([grid.create_message(RecordDict(), "train.echo", node, "1")])
    assert protocol.failure(reply) == "the network is down"


def test_a_strategy_adds_up_replies_that_stay_on_disk(folder, quick):
    """FedAvg over six replies of 8 MB holds the sum, and one tensor of one reply."""
    model = {f"x{number:02}": torch.full((2**16,), float(number)) for number in range(32)}
    size = tensors.size(model)
    grid = recorded(ShuffledGrid(), folder)
    strategy = FedAvg(min_available_nodes=NODES)
    asked = strategy.configure_train(1, protocol.pack(model), ConfigRecord(), grid)
    tracemalloc.start()
    try:
        replies = list(grid.send_and_receive(asked))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        averaged, _ = strategy.aggregate_train(1, replies)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 0.5 * size
    assert peak - held < 2.5 * size  # the sum, and Flower's record of it
    # Nodes weigh 1, 2 ... 6 and add as much: the mean is sum i * i / sum i.
    more = sum(i * i for i in range(1, NODES + 1)) / sum(range(1, NODES + 1))
    for name, tensor in protocol.unpack(averaged).items():
        torch.testing.assert_close(tensor, model[name].to(tensor.dtype) + more)
