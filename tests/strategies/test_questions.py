"""Races on real clients: what is sent to whom and how often, and what comes of it."""

import weakref
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch
from federations import (
    GENERIC_SPEAKERS,
    Around,
    ledger,
    results,
    settings,
    simulate,
    watch_stages,
)
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from fedspeech import corpus as corpora
from fedspeech import evaluation, features, protocol, racing, seeding, tensors
from fedspeech.corpus.partition import partition, pseudonym
from fedspeech.errors import RunError
from fedspeech.models import description as descriptions
from fedspeech.population import Population
from fedspeech.protocol import Member
from strategies import questions
from strategies.exchange import Exchange
from strategies.view import Candidates

CLIENTS = 6
RACING = {"k": 2, "search": "racing", "budget": 0.6}


class Recorder(Around):
    """All `query.word_errors` in the order in which they are sent; some are answered by errors."""

    def __init__(self, grid, refuse=lambda text: False):
        super().__init__(grid)
        self.asked, self.refuse = [], refuse

    def sent(self, message):
        if message.metadata.message_type == protocol.WORD_ERRORS:
            self.asked.append(message)

    def received(self, reply):
        asked = {m.metadata.message_id: m for m in self.asked}
        message = asked.get(reply.metadata.reply_to_message_id)
        if message is not None and self.refuse(protocol.text(message.content)):
            return Message(Error(1, "refused"), reply_to=message)
        return reply

    def texts(self):
        return [protocol.text(message.content) for message in self.asked]

    def carried(self) -> Counter:
        """(node, candidate) of all tensors that belong to a race."""
        return Counter(
            (message.metadata.dst_node_id, candidate)
            for message in self.asked
            if "race" in protocol.text(message.content)
            for candidate in message.content.array_records
        )


@pytest.fixture(scope="module")
def crowd(tone_corpus, tmp_path_factory):
    """Three speakers for G, which learns a little, and six clients with 12 utterances each."""
    return tone_corpus(tmp_path_factory.mktemp("crowd"), GENERIC_SPEAKERS + CLIENTS, per_round=4)


def experiment(crowd, kbest=RACING, **federation):
    federation = {"bases": ["kbest"], "alphas": [0.0, 1.0], **federation}
    return settings(crowd, generic={"epochs": 4}, rules={"kbest": kbest}, federation=federation)


def run(experiment, folder, refuse=lambda text: False):
    grids = []

    def record(grid):
        grids.append(Recorder(grid, refuse))
        return grids[0]

    return simulate(experiment, folder, around=record), grids[0]


@pytest.fixture(scope="module")
def raced(crowd, tmp_path_factory):
    """A race in messages of at most two candidates; how often each difference was read."""
    reads = Counter()
    real = Population.difference

    def read(population, candidate):
        reads[candidate] += 1
        return real(population, candidate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "CANDIDATES_PER_MESSAGE", 2)
        patch.setattr(Population, "difference", read)
        stages = watch_stages(patch)
        settings = experiment(crowd, pair_decodings=1)
        folder, asked = run(settings, tmp_path_factory.mktemp("raced") / "run")
    told = [total for name, total, done in stages if total == done and "word_errors" in name]
    # Of each three times two candidates nobody lacks both; then the ends, and the pair of Figure 2.
    assert told == [3 * CLIENTS, CLIENTS, 1]
    return folder, asked, reads


def test_a_race_is_two_exchanges(raced):
    """First the candidates, the same few to everybody before the next, then only their hashes."""
    folder, asked, reads = raced
    texts = [text for text in asked.texts() if "race" in text]
    ends = [text["race"]["ends"] for text in texts]
    assert ends == sorted(ends) and Counter(ends)[True] == CLIENTS
    speakers = [row["speaker"] for row in results(folder)["per_speaker"]]
    sent = [list(text["candidates"]) for text in texts if not text["race"]["ends"]]
    assert all(1 <= len(candidates) <= 2 for candidates in sent)
    places = [speakers.index(candidates[0]) // 2 for candidates in sent]
    assert [place for place, _ in groupby(places)] == [0, 1, 2]
    assert set(reads) == set(speakers)
    # Once for all, and once more for the pair of Figure 2.
    assert sum(reads.values()) <= CLIENTS + 1


def test_a_candidate_is_sent_once_to_each_device(raced):
    folder, asked, _ = raced
    assert set(asked.carried().values()) == {1}
    assert len(asked.carried()) == CLIENTS * (CLIENTS - 1)
    by_kind = [int(row["bytes"]) for row in ledger(folder) if row["kind"] == protocol.WORD_ERRORS]
    sizes = [protocol.size(message.content) for message in asked.asked]
    assert by_kind[::2] == sizes
    model = results(folder)["bytes"]["full_model"]
    down = sum(
        size
        for size, message in zip(sizes, asked.asked, strict=True)
        if "race" in protocol.text(message.content)
    )
    pairs = CLIENTS * (CLIENTS - 1)
    assert pairs * model < down < 1.02 * pairs * model


@pytest.fixture(scope="module")
def by_utterance(crowd, raced, tmp_path_factory):
    """Errors of one speaker's model on each of another's train_s, and its words, by hand."""
    folder, *_ = raced
    made = experiment(crowd)
    parts = partition(corpora.load(made.corpus), made.partition)
    clients = {pseudonym(0, client.speaker): client for client in parts.clients}
    description = descriptions.read(folder / "models" / "generic.json")
    cache = tmp_path_factory.mktemp("features")
    population = Population(folder / "models")

    def count(speaker, candidate):
        heard = features.prepare(
            clients[speaker].train, description.features, (), cache, clients[speaker].train
        )
        module = description.module(dict(population.personal(candidate)))
        return evaluation.word_errors(module, heard, description.features, description.units)

    return count


@pytest.fixture(scope="module")
def expected(raced, by_utterance) -> dict[str, racing.Race]:
    """Each speaker's race, on tables."""
    speakers = [row["speaker"] for row in results(raced[0])["per_speaker"]]
    races = {}
    for speaker in speakers:
        counts = {other: by_utterance(speaker, other) for other in speakers if other != speaker}
        races[speaker] = racing.race(
            counts,
            2,
            next(iter(counts.values())).words,
            lambda names, chosen, counts=counts: np.stack(
                [counts[name].errors[chosen] for name in names]
            ),
            seeding.generator(0, 1, speaker, "race"),
            0.95,
            0.6,
        )
    return races


def test_the_peers_are_those_of_the_race(raced, expected):
    folder, *_ = raced
    found = results(folder)
    assert found["failures"] == []
    assert found["peers"]["kbest"] == {s: sorted(race.kept) for s, race in expected.items()}


def test_the_decodings_are_told(raced, expected):
    folder, *_ = raced
    assert results(folder)["decodings"] == {
        "kbest": {
            "used": sum(race.decodings for race in expected.values()),
            "exhaustive": CLIENTS * (CLIENTS - 1) * 12,
            "cut": sum(not race.confident for race in expected.values()),
        }
    }
    used = results(folder)["decodings"]["kbest"]["used"]
    assert used <= 0.6 * CLIENTS * (CLIENTS - 1) * 12
    page = (folder / "report.html").read_text()
    assert f"kbest: {used} of 360 utterance decodings ({100 * used / 360:.1f} %)" in page


def test_what_a_race_tells_is_not_taken_for_the_whole(raced, by_utterance):
    """Figure 2 has its pair decoded on all of train_s, although it was in a race."""
    folder, asked, _ = raced
    (text,) = [text for text in asked.texts() if "race" not in text]
    assert len(text["candidates"]) == results(folder)["pairs"] == 1


def test_exhaustive_search_needs_all_and_a_second_rule_nothing_more(crowd, tmp_path):
    rules = {"kbest": {"k": 2}, "again": {"class": "strategies.kbest:KBest", "k": 1}}
    made = settings(crowd, rules=rules, federation={"bases": ["mean", "kbest", "again"]})
    found = results(simulate(made, tmp_path / "run"))
    every = CLIENTS * (CLIENTS - 1) * 12
    assert found["decodings"] == {
        "kbest": {"used": every, "exhaustive": every, "cut": 0},
        "again": {"used": 0, "exhaustive": every, "cut": 0},
    }


def test_no_candidate_stays_in_memory_when_its_errors_are_known(crowd, tmp_path, monkeypatch):
    ask, read, left = questions.Questions.ask, [], []

    def note(self, grid, round, asked):
        answers = ask(self, grid, round, asked)
        left.append(self._record.cache_info().currsize)
        return answers

    monkeypatch.setattr(questions.Questions, "ask", note)
    difference = Population.difference
    monkeypatch.setattr(Population, "difference", lambda p, c: read.append(c) or difference(p, c))
    simulate(experiment(crowd, kbest={"k": 2}), tmp_path / "run")
    assert len(set(read)) == CLIENTS
    assert set(left) == {0}


def test_nobody_is_asked_where_k_takes_all(crowd, tmp_path):
    made = experiment(crowd, {**RACING, "k": CLIENTS - 1}, pair_decodings=1)
    folder, asked = run(made, tmp_path / "run")
    assert asked.carried() == Counter()
    assert results(folder)["decodings"]["kbest"]["used"] == 0
    assert all(len(peers) == CLIENTS - 1 for peers in results(folder)["peers"]["kbest"].values())


@pytest.mark.faults
@pytest.mark.parametrize("ends", [False, True])
def test_who_fails_in_a_race_drops_out_and_the_others_go_on(crowd, tmp_path, ends):
    lost = pseudonym(0, "t04")

    def refuse(text):  # all others are asked about the lost speaker
        race = text.get("race", {"ends": None})
        return race["ends"] == ends and lost not in text["candidates"]

    folder, asked = run(experiment(crowd, pair_decodings=1), tmp_path / "run", refuse)
    found = results(folder)
    assert [(f["speaker"], f["message"], f["reason"]) for f in found["failures"]] == [
        (lost, protocol.WORD_ERRORS, "refused")
    ]
    assert found["speakers"] == CLIENTS - 1
    ended = [text for text in asked.texts() if text.get("race", {}).get("ends")]
    assert len(ended) == (CLIENTS if ends else CLIENTS - 1)
    assert found["decodings"]["kbest"]["exhaustive"] == (CLIENTS - 1) ** 2 * 12


def test_races_of_one_rule_do_not_mix(crowd, tmp_path, monkeypatch):
    """They share a message's worth of candidates, which the device has let go of in between."""
    monkeypatch.setattr(questions, "CANDIDATES_PER_MESSAGE", 2)
    rules = {"racestwice": {"class": "odd_rules:RacesTwice"}}
    federation = {"bases": ["racestwice"], "alphas": [0.0], "pair_decodings": 1}
    folder, asked = run(settings(crowd, rules=rules, federation=federation), tmp_path / "run")
    assert results(folder)["failures"] == []
    ended = [text for text in asked.texts() if text.get("race", {}).get("ends")]
    assert len(ended) == 2 * CLIENTS


class _Alive:
    """A grid that answers nobody, and counts the sets of tensors that are alive as it sends."""

    def __init__(self):
        # What Flower asks for before the first message is made.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.sent, self.most, self._seen = [], 0, {}

    def create_message(self, content, kind, node, group):
        return Message(content, node, kind, group_id=group)

    def send_and_receive(self, messages, timeout):
        made = iter(messages)
        while (message := next(made, None)) is not None:
            records = protocol.arrays(message.content)
            self._seen |= {id(record): weakref.ref(record) for record in records.values()}
            self.sent.append(len(records))
            del message, records
            self.most = max(self.most, sum(seen() is not None for seen in self._seen.values()))
        return []


@pytest.mark.parametrize(("held", "carried"), [(0.5, 1), (2.5, 2), (100, 4)])
def test_only_the_candidates_of_one_message_are_in_memory(tmp_path, monkeypatch, held, carried):
    """So many as have room in a message: they go to everybody before the next ones are read."""
    population = Population(tmp_path)
    names = [f"s{number}" for number in range(7)]
    model = {"w": torch.zeros(100)}
    tensors.write(population.generic_path, model)
    for number, name in enumerate(names):
        tensors.write(population.personal_path(name), {"w": torch.full((100,), float(number))})
    members = [Member(name, node, 1.0, 1, "") for node, name in enumerate(names)]
    exchange = Exchange(members, 0.0, [])
    exchange.admit(names)
    monkeypatch.setattr(questions, "CANDIDATES_PER_MESSAGE", 4)
    at_most = int(held * tensors.size(model))
    asking, grid = questions.Questions(population, exchange, 0, at_most), _Alive()
    with pytest.raises(RunError):  # nobody is left
        asking.ask(grid, 1, {name: Candidates(names, "train") for name in names})
    assert sum(grid.sent) == len(names) ** 2
    assert max(grid.sent) == carried and grid.most <= carried + 1
