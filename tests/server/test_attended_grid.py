"""Flower's own strategies on the rounds of a plan; averages against plain NumPy."""

import random
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx

from fedspeech.errors import RunError
from fedspeech.participation import LATE, NOT_SAMPLED, Round
from fedspeech.protocol import Member
from fedspeech.simulation.grid import FIRST_NODE, SimulatedGrid, answer
from server.attended_grid import AttendedGrid
from server.journal import Journal
from server.recorded_grid import RecordedGrid

SPEAKERS = ("anna", "bert", "cleo", "dora", "emil")
NODES = {speaker: FIRST_NODE + i for i, speaker in enumerate(SPEAKERS)}
START = np.array([0.0, 1.0], dtype=np.float32)
app = ClientApp()


def trained(values: np.ndarray, speaker: str) -> np.ndarray:
    """What a speaker makes of a model."""
    number = SPEAKERS.index(speaker)
    return (values * (number + 2) + number).astype(np.float32)


def examples(speaker: str) -> int:
    return 3 * SPEAKERS.index(speaker) + 1


@app.train()
def train(message: Message, context) -> Message:
    speaker = SPEAKERS[context.node_id - FIRST_NODE]
    values = message.content["arrays"]["x"].numpy()
    arrays = ArrayRecord({"x": _array(trained(values, speaker))})
    metrics = MetricRecord({"num-examples": examples(speaker)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def _array(values: np.ndarray):
    return ArrayRecord([values])["0"]


class Nodes(SimulatedGrid):
    """Five nodes; `asked` are the types of the messages and the speakers they went to."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        super().__init__(lambda: [{}] * len(SPEAKERS))
        self.failing, self.asked, self.waiting = failing, [], {}

    def push_messages(self, messages):
        numbered = {self._number(message): message for message in messages}
        self.waiting.update(numbered)
        return list(numbered)

    def pull_messages(self, message_ids):
        return [self._answer(self.waiting.pop(number)) for number in message_ids]

    def _answer(self, message):
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        speaker = SPEAKERS[node - FIRST_NODE]
        self.asked.append((kind, speaker))
        if speaker in self.failing and kind == "train":
            return Message(Error(2, f"{speaker} is out of memory"), reply_to=message)
        return answer(app, message, self._contexts[node])


def attended(number: int, asked: str, late: str = "") -> Round:
    """Speakers by their first letters."""
    by_letter = {speaker[0]: speaker for speaker in SPEAKERS}
    absent = dict.fromkeys(set(SPEAKERS) - {by_letter[c] for c in asked}, NOT_SAMPLED)
    absent |= {by_letter[c]: LATE for c in late}
    return Round("improve", number, {by_letter[c]: 1.0 for c in asked}, {}, absent, 1.0)


PLAN = [attended(1, "abd", late="b"), attended(2, "bcde"), attended(3, "ace", late="e")]


def run(strategy, grid, plan=PLAN, quorum=0.5, journal=None) -> np.ndarray:
    random.seed(0)
    around = AttendedGrid(grid, NODES, plan, quorum, journal or Journal(Path(":memory:")))
    around.follow(strategy)
    config = ConfigRecord({})
    arrays = ArrayRecord({"x": _array(START)})
    result = strategy.start(around, arrays, len(plan), train_config=config)
    return result.arrays["x"].numpy()


def by_hand(*rounds: tuple[str, ...]) -> np.ndarray:
    """The weighted average over those who answered in time, round after round."""
    values = START
    for speakers in rounds:
        models = np.stack([trained(values, speaker) for speaker in speakers])
        weights = [examples(speaker) for speaker in speakers]
        values = np.average(models.astype(np.float64), axis=0, weights=weights)
        values = values.astype(np.float32)
    return values


def of_kind(grid: Nodes, kind: str) -> list[str]:
    return [speaker for asked, speaker in grid.asked if asked == kind]


@pytest.mark.parametrize(
    "strategy", [FedAvg(), FedProx(proximal_mu=0.1), FedAvg(fraction_evaluate=0.0)]
)
def test_the_average_is_over_those_who_answered_in_time(strategy):
    expected = by_hand(("anna", "dora"), ("bert", "cleo", "dora", "emil"), ("anna", "cleo"))
    everybody = by_hand(*[SPEAKERS] * 3)
    found = run(strategy, Nodes())
    assert np.allclose(found, expected, rtol=1e-5)
    assert not np.allclose(found, everybody, rtol=1e-2)


def test_who_is_asked_is_trained_and_who_was_in_time_is_judged():
    grid = Nodes()
    run(FedAvg(), grid)
    trained_on, judged = of_kind(grid, "train"), of_kind(grid, "evaluate")
    assert sorted(trained_on[:3]) == ["anna", "bert", "dora"]
    assert sorted(trained_on[3:7]) == ["bert", "cleo", "dora", "emil"]
    assert sorted(trained_on[7:]) == ["anna", "cleo", "emil"]
    assert sorted(judged[:2]) == ["anna", "dora"]
    assert sorted(judged[2:6]) == ["bert", "cleo", "dora", "emil"]
    assert sorted(judged[6:]) == ["anna", "cleo"]


def test_messages_say_which_round_they_are_of(monkeypatch):
    grid, rounds = Nodes(), []
    push = grid.push_messages

    def seen(messages):
        messages = list(messages)
        rounds.extend(message.metadata.group_id for message in messages)
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", seen)
    run(FedAvg(), grid)
    asked = [len(one.asked) + len(one.in_time) for one in PLAN]
    assert rounds == [*("1" * asked[0]), *("2" * asked[1]), *("3" * asked[2])]


def test_a_failure_above_the_quorum_is_left_out_of_the_average():
    found = run(FedAvg(), Nodes(failing=("cleo",)), PLAN[:2])
    expected = by_hand(("anna", "dora"), ("bert", "dora", "emil"))
    assert np.allclose(found, expected, rtol=1e-5)


def test_a_resumed_run_goes_on_without_those_whom_a_round_went_on_without(tmp_path):
    """Cleo and Emil failed; asked again they would make another G of what all have fine-tuned."""
    found, asked = [], []
    for failing in (("cleo", "emil"), ()):
        grid, journal = Nodes(failing), Journal(tmp_path / "journal.sqlite")
        recorded = RecordedGrid(grid, journal, tmp_path)
        recorded.know(Member(speaker, node, 60.0, 3, "") for speaker, node in NODES.items())
        found.append(run(FedAvg(), recorded, quorum=0.3, journal=journal))
        asked.append(grid.asked)
        journal.close()
    assert np.array_equal(*found)
    assert asked[0] and not asked[1]


def test_who_is_missed_by_a_round_that_did_not_end_is_asked_again(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(RunError, match="expected at least"):
        run(FedAvg(), Nodes(failing=("anna",)), journal=journal)
    assert journal.given_up() == {}


def test_late_answers_and_failures_both_count_against_the_quorum():
    with pytest.raises(RunError) as told:
        run(FedAvg(), Nodes(failing=("anna",)))
    assert str(told.value) == (
        "federation.improve, round 1: 1 of 3 speakers that were asked answered in time, expected "
        "at least 1.5 (federation.quorum)\n  anna is out of memory"
    )
    assert run(FedAvg(), Nodes(failing=("anna",)), PLAN[:1], quorum=0.3) is not None


def test_without_any_answer_there_is_no_round():
    with pytest.raises(RunError, match=r"0 of 3 .* expected at least 1 "):
        run(FedAvg(), Nodes(failing=("anna", "dora")), quorum=0.0)
