"""The strategy on real clients: what is asked of whom; the figures are those of the models."""

import re
from itertools import groupby

import numpy as np
import pytest
import torch
from federations import Around, ledger, results, settings, simulate
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from fedspeech import corpus as corpora
from fedspeech import evaluation, features, protocol
from fedspeech.corpus.partition import partition, pseudonym
from fedspeech.errors import RuleError
from fedspeech.models import description as descriptions
from fedspeech.population import Population
from fedspeech.tensors import sha256

CLIENTS = 4


class Recorder(Around):
    """All messages of personalization: type, round, node, text and names of tensors."""

    def __init__(self, grid):
        super().__init__(grid)
        self.asked = []

    def sent(self, message):
        if message.metadata.message_type != protocol.DESCRIBE:
            self.asked.append(message)

    def of(self, kind, **said):
        """The texts of the messages of a type that say this, and whether they carry tensors."""
        found = [
            (protocol.text(m.content), bool(m.content.array_records))
            for m in self.asked
            if m.metadata.message_type == kind
        ]
        return [(t, sent) for t, sent in found if said.items() <= t.items()]

    def models(self, kind, **said):
        """The model in each message of a type that says this."""
        return [
            protocol.unpack(message.content.array_records["model"])
            for message in self.asked
            if message.metadata.message_type == kind
            and said.items() <= protocol.text(message.content).items()
        ]


def run(experiment, folder):
    """The folder of a run, and what was asked in it."""
    grids = []

    def record(grid):
        grids.append(Recorder(grid))
        return grids[0]

    return simulate(experiment, folder, around=record), grids[0]


def odd(corpus, *names: str, **federation):
    """An experiment whose bases are rules of odd_rules; `name` is the class in small letters."""
    rules = {name.lower(): {"class": f"odd_rules:{name}"} for name in names}
    bases = [name.lower() for name in names]
    return settings(corpus, rules=rules, federation={"bases": bases, **federation})


@pytest.fixture(scope="module")
def usual(corpus, tmp_path_factory):
    experiment = settings(corpus, federation={"bases": ["mean", "kbest", "random"]})
    return run(experiment, tmp_path_factory.mktemp("usual") / "run")


# What is asked.


def test_nothing_is_sent_where_m_is_g(corpus, tmp_path):
    folder, asked = run(odd(corpus, "Nobody"), tmp_path / "run")
    generation = sha256(dict(Population(folder / "models").generic()))
    for base in ("generic", "nobody"):
        judged = asked.of(protocol.EVALUATE, base=base)
        assert len(judged) == CLIENTS
        assert not any(sent for _, sent in judged)
        assert {text["model"] for text, _ in judged} == {generation}
    assert results(folder)["failures"] == []
    rows = [row for row in ledger(folder) if row["kind"] == protocol.EVALUATE]
    assert len(rows) == 2 * 2 * CLIENTS
    assert max(int(row["bytes"]) for row in rows) < 400


def test_m_is_sent_where_it_is_not_g(usual):
    _, asked = usual
    for base in ("mean", "kbest", "random"):
        judged = asked.of(protocol.EVALUATE, base=base)
        assert len(judged) == CLIENTS
        assert all(sent for _, sent in judged)


def test_g_goes_down_once(usual):
    _, asked = usual
    tunings = asked.of(protocol.PERSONALIZE)
    assert [sent for _, sent in tunings] == [True] * CLIENTS
    assert all(text["start"] is None for text, _ in tunings)


def test_alpha_1_is_judged_once(usual):
    _, asked = usual
    alphas = {
        base: [text["alphas"] for text, _ in asked.of(protocol.EVALUATE, base=base)]
        for base in ("generic", "mean", "kbest", "random")
    }
    assert alphas.pop("generic") == [[0.0, 0.5, 1.0]] * CLIENTS
    assert list(alphas.values()) == [[[0.0, 0.5]] * CLIENTS] * 3
    chosen = [text["choose"] for text, _ in asked.of(protocol.EVALUATE)]
    assert chosen == [[0.0, 0.5, 1.0]] * 4 * CLIENTS


def test_p_is_judged_although_alpha_1_is_not_in_the_grid(corpus, tmp_path):
    experiment = settings(corpus, seed=7, federation={"bases": ["mean"], "alphas": [0.25]})
    folder, asked = run(experiment, tmp_path / "run")
    assert {text["seed"] for text, _ in asked.of(protocol.PERSONALIZE)} == {7}
    assert asked.of(protocol.EVALUATE, base="generic")[0][0]["alphas"] == [0.0, 0.25, 1.0]
    found = results(folder)
    assert [(row["base"], row["alpha"]) for row in found["table"]] == [
        ("mean", 0.25),
        ("mean", "chosen"),
    ]
    assert found["personal"]["mean"] > 0


def test_what_rules_ask_travels_in_one_exchange(corpus, usual, tmp_path):
    """kbest asks about all pairs: no more for figure 2, and nothing twice."""
    twice = run(odd(corpus, "AsksTwice"), tmp_path / "run")
    for _, asked in (usual, twice):
        kinds = [(m.metadata.message_type, m.metadata.dst_node_id) for m in asked.asked]
        blocks = [(kind, [n for _, n in of]) for kind, of in groupby(kinds, lambda pair: pair[0])]
        questions = [nodes for kind, nodes in blocks if kind == protocol.WORD_ERRORS]
        assert len(questions) == 1
        assert len(questions[0]) == len(set(questions[0])) == CLIENTS
        pairs = [len(text["candidates"]) for text, _ in asked.of(protocol.WORD_ERRORS)]
        assert pairs == [CLIENTS - 1] * CLIENTS


def test_a_sample_of_pairs_is_decoded_where_no_rule_asks(corpus, tmp_path):
    federation = {"bases": ["mean"], "pair_decodings": 5}
    folder, asked = run(settings(corpus, federation=federation), tmp_path / "run")
    pairs = sum(len(text["candidates"]) for text, _ in asked.of(protocol.WORD_ERRORS))
    assert pairs == results(folder)["pairs"] == 5


def test_what_a_rule_had_decoded_beside_the_sample_does_not_count(corpus, tmp_path):
    experiment = odd(corpus, "AsksAboutTheFirst", pair_decodings=5)
    folder, asked = run(experiment, tmp_path / "run")
    decoded = sum(len(text["candidates"]) for text, _ in asked.of(protocol.WORD_ERRORS))
    assert decoded > 5 == results(folder)["pairs"]


def test_two_bases_that_come_to_the_same_model_are_two_questions(corpus, tmp_path):
    rules = {"again": {"class": "strategies.mean:Mean"}}
    bases = ["mean", "kbest", "again"]  # in between, devices hold another one
    experiment = settings(corpus, rules=rules, federation={"bases": bases})
    found = results(simulate(experiment, tmp_path / "run"))
    assert found["failures"] == []
    rows = {base: [r for r in found["table"] if r["base"] == base] for base in bases}
    assert [{**row, "base": "mean"} for row in rows["again"]] == rows["mean"]
    assert rows["mean"] != [{**row, "base": "mean"} for row in rows["kbest"]]


# Rounds.


@pytest.mark.parametrize("mix_on", ["device", "server"])
def test_the_next_round_starts_from_the_mix(corpus, tmp_path, mix_on):
    federation = {
        "bases": ["mean"],
        "rounds": 2,
        "continue_from": {"base": "mean", "alpha": 0.25},
        "mix_on": mix_on,
    }
    _, asked = run(settings(corpus, federation=federation), tmp_path / "run")
    alpha = {"device": None, "server": 0.25}[mix_on]
    rounds = {m.metadata.dst_node_id: [] for m in asked.asked}
    for message in asked.asked:
        rounds[message.metadata.dst_node_id].append(
            (message.metadata.message_type, protocol.text(message.content))
        )
    for messages in rounds.values():
        (first, tuned), (second, installed), (third, again), *_ = messages
        assert [first, second, third] == [
            protocol.PERSONALIZE,
            protocol.INSTALL,
            protocol.PERSONALIZE,
        ]
        assert (tuned["round"], tuned["start"]) == (1, None)
        assert (installed["base"], installed["alpha"]) == ("mean", alpha)
        expected = {"installed": installed["model"], "alpha": 0.25 if alpha is None else 0.0}
        assert (again["round"], again["start"]) == (2, expected)


def test_where_the_mix_is_made_changes_no_second_round(corpus, tmp_path):
    models = []
    for mix_on in ("device", "server"):
        go_on = {"base": "kbest", "alpha": 0.5}
        federation = {"bases": ["kbest"], "rounds": 2, "continue_from": go_on, "mix_on": mix_on}
        folder = simulate(settings(corpus, federation=federation), tmp_path / mix_on)
        paths = sorted((folder / "models" / "personal").iterdir())
        models.append([path.read_bytes() for path in paths])
    assert len(models[0]) == CLIENTS
    assert models[0] == models[1]


# Rules.


def test_a_rule_with_a_mix_of_its_own_mixes_on_the_server(corpus, tmp_path):
    folder, asked = run(odd(corpus, "Larger"), tmp_path / "run")
    population = Population(folder / "models")
    speakers = [row["speaker"] for row in results(folder)["per_speaker"]]
    models = {speaker: dict(population.personal(speaker)) for speaker in speakers}
    expected = [
        {name: torch.maximum(tensor, others[name]) for name, tensor in models[speaker].items()}
        for speaker in speakers
        for others in [average([models[s] for s in speakers if s != speaker])]
    ]
    sent = asked.models(protocol.EVALUATE, base="larger")
    # At the second alpha it is the same model, and so the same question.
    for found, model in zip(sent, expected, strict=True):
        assert all(torch.allclose(found[name], model[name], atol=1e-6) for name in model)
    judged = [text for text, _ in asked.of(protocol.EVALUATE, base="larger")]
    assert [(text["alphas"], text["choose"]) for text in judged] == [([0.0], [])] * CLIENTS
    cells = [(row["base"], row["alpha"]) for row in results(folder)["table"]]
    assert cells == [("larger", 0.0), ("larger", 0.5), ("larger", 1.0)]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Selfish", r"rule Selfish gave speaker {first} a weight on itself \(1.0\)"),
        ("Negative", r"rule Negative gave speaker {first} the weight -1.0 on s\w+; expected"),
        ("AsksAboutNobody", "the rule asked {first} about an unknown speaker: zoe"),
        ("AsksAboutTests", "the rule asked {first} about utterances of 'test', expected 'train'"),
        ("NotANumber", "rule notanumber built an unusable model for {first}: tensor .* NaN"),
        ("HalfAModel", "rule halfamodel built an unusable model for {first}: tensor output"),
    ],
)
def test_what_a_rule_may_not_do_is_told_with_its_name_and_the_speaker(corpus, tmp_path, name, told):
    first = min(pseudonym(0, f"t{number:02}") for number in range(3, 3 + CLIENTS))
    with pytest.raises(RuleError) as caught:
        simulate(odd(corpus, name), tmp_path / "run")
    assert re.match(told.format(first=first), str(caught.value)), caught.value


# The figures are those of the models.


@pytest.fixture(scope="module")
def by_hand(corpus, usual, tmp_path_factory):
    """Word errors of any model on a client's speech, without clients, server or strategies."""
    folder, _ = usual
    experiment = settings(corpus)
    parts = partition(corpora.load(experiment.corpus), experiment.partition)
    clients = {pseudonym(0, client.speaker): client for client in parts.clients}
    description = descriptions.read(folder / "models" / "generic.json")
    cache = tmp_path_factory.mktemp("features")

    def count(speaker, model, part):
        client = clients[speaker]
        cuts = getattr(client, part)
        heard = features.prepare(cuts, description.features, (), cache, client.train)
        found = evaluation.word_errors(
            description.module(model), heard, description.features, description.units
        )
        return found.errors.sum(), found.words.sum()

    return count


def average(models):
    return {
        name: torch.stack([m[name].double() for m in models]).mean(0).float() for name in models[0]
    }


def test_the_table_is_what_the_models_give(usual, by_hand):
    folder, _ = usual
    found, population = results(folder), Population(folder / "models")
    speakers = [row["speaker"] for row in found["per_speaker"]]
    personal = {speaker: dict(population.personal(speaker)) for speaker in speakers}
    generic = dict(population.generic())
    rates = {"generic": [], "personal": [], "mean": [], "kbest": [], "random": []}
    for speaker in speakers:
        peers = {base: by[speaker] for base, by in found["peers"].items()}
        assert set(peers["mean"]) == set(speakers) - {speaker}
        models = {"generic": generic, "personal": personal[speaker]}
        for base in ("mean", "kbest", "random"):
            other = average([personal[peer] for peer in peers[base]])
            models[base] = average([personal[speaker], other])
        for name, model in models.items():
            wrong, words = by_hand(speaker, model, "test")
            rates[name].append(100 * wrong / words)
    assert found["generic"]["mean"] == pytest.approx(np.mean(rates["generic"]), abs=1e-5)
    assert found["personal"]["mean"] == pytest.approx(np.mean(rates["personal"]), abs=1e-5)
    half = {row["base"]: row["mean"] for row in found["table"] if row["alpha"] == 0.5}
    for base in ("mean", "kbest", "random"):
        assert half[base] == pytest.approx(np.mean(rates[base]), abs=1e-5)


def test_kbest_takes_the_model_with_the_fewest_errors_on_train_s(usual, by_hand):
    folder, _ = usual
    found, population = results(folder), Population(folder / "models")
    for speaker, (peer,) in found["peers"]["kbest"].items():
        wrong = {
            other: by_hand(speaker, dict(population.personal(other)), "train")[0]
            for other in found["peers"]["kbest"]
            if other != speaker
        }
        assert wrong[peer] == min(wrong.values())


def test_the_tree_is_that_of_the_first_layers_weights(usual):
    """What batch normalization has measured is no weight, and larger than all weights together."""
    folder, _ = usual
    found, population = results(folder), Population(folder / "models")
    names = [f"tdnn.0.{n}" for n in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")]
    models = [dict(population.personal(row["speaker"])) for row in found["per_speaker"]]
    rows = [np.concatenate([m[name].double().numpy().ravel() for name in names]) for m in models]
    expected = linkage(pdist(rows), "ward")
    np.testing.assert_allclose(found["dendrogram"]["linkage"], expected, atol=2e-6)


def test_the_bytes_are_those_of_the_ledger(usual):
    folder, asked = usual
    rows = ledger(folder)
    for way in ("down", "up"):
        total = sum(int(row["bytes"]) for row in rows if row["direction"] == way)
        assert results(folder)["bytes"][way] == total
    down = [int(row["bytes"]) for row in rows if row["direction"] == "down"]
    sent = [protocol.size(message.content) for message in asked.asked]
    assert down[CLIENTS:] == sent  # the first ones are `query.describe`
    model = Population(folder / "models").generic()
    assert results(folder)["bytes"]["full_model"] == sum(4 * t.numel() for _, t in model)
