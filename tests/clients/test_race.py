"""A race on a device, against the same race on a table of all errors."""

import json

import numpy as np
import pytest
import torch

from clients.race import DeviceRace
from clients.speaker import Speaker
from fedspeech import racing, seeding
from fedspeech.errors import ModelError
from fedspeech.evaluation import word_errors
from fedspeech.tensors import add, sha256

NAMES = tuple(f"s{i:02}" for i in range(7))
SETTINGS = {"k": 2, "confidence": 0.9, "budget": 0.6, "seed": 3, "round": 1}


@pytest.fixture(scope="session")
def differences(generic) -> dict:
    """Models that hear more and more of what nobody said."""
    made = {}
    for number, name in enumerate(NAMES):
        draw = torch.Generator().manual_seed(number)
        scale = 0.1 * (1 + number % 4)
        made[name] = {n: scale * torch.randn(t.shape, generator=draw) for n, t in generic.items()}
    return made


@pytest.fixture
def table(differences, generic, description, client, heard) -> np.ndarray:
    """Errors of each candidate on each utterance, without the device."""
    found = []
    for difference in differences.values():
        module = description.module(dict(add(generic.items(), difference)))
        utterances = heard(client.train)
        found.append(word_errors(module, utterances, description.features, description.units))
    return np.stack([counts.errors for counts in found])


@pytest.fixture
def expected(table, client, speaker) -> racing.Race:
    return racing.race(
        NAMES,
        SETTINGS["k"],
        np.array([len(cut.supervisions[0].text.split()) for cut in client.train]),
        lambda names, utterances: table[[NAMES.index(n) for n in names]][:, utterances],
        seeding.generator(SETTINGS["seed"], SETTINGS["round"], speaker.name, "race"),
        SETTINGS["confidence"],
        SETTINGS["budget"],
    )


@pytest.fixture
def tell(speaker, differences):
    """Send some candidates with their tensors, or end the race among all of them."""
    hashes = {name: sha256(difference) for name, difference in differences.items()}

    def send(*names, ends=False, **change):
        told = {name: hashes[name] for name in (NAMES if ends and not names else names)}
        race = {**SETTINGS, "candidates": len(NAMES), "ends": ends, **change}
        asked = json.loads(json.dumps({"candidates": told, "part": "train", "race": race}))
        tensors = {} if ends else differences
        return DeviceRace(Speaker(speaker.folder), asked).answer(lambda name: tensors[name])

    return send


def held(speaker) -> set[str]:
    folder = speaker.store.folder / "candidates"
    return {path.stem for path in folder.glob("*")} if folder.exists() else set()


def told(race: racing.Race) -> dict:
    """As the device answers it."""
    return {n: v for n, v in vars(race).items() if n != "errors"} | {"kept": list(race.kept)}


def test_the_table_is_worth_a_race(table, expected):
    totals = table.sum(1)
    assert len(set(totals)) > 3
    assert SETTINGS["k"] * table.shape[1] < expected.decodings < 0.6 * expected.exhaustive


@pytest.mark.parametrize("messages", [[7], [3, 3, 1], [1] * 7, [3, 3, 1, "backwards"]])
def test_it_is_the_race_on_the_table_however_the_candidates_come(
    speaker, tell, table, expected, messages
):
    names = list(NAMES[::-1] if messages[-1] == "backwards" else NAMES)
    first, survivors = racing.first_rung(
        len(NAMES), 2, table.shape[1], seeding.generator(3, 1, speaker.name, "race"), 0.6
    )
    came = []
    for size in (m for m in messages if m != "backwards"):
        some, names = names[:size], names[size:]
        assert tell(*some) == {"errors": {}, "words": 0, "part": "train"}
        came += some
        ranked = sorted(came, key=lambda n: (table[NAMES.index(n)][first].sum(), n))
        assert len(held(speaker)) == min(survivors, len(came)) == len(set(ranked[:survivors]))
    answer = tell(ends=True)
    assert answer["errors"] == expected.errors
    assert answer["race"] == told(expected)
    assert (answer["words"], answer["part"]) == (speaker.words("train").sum(), "train")
    assert held(speaker) == set()
    pool = {path.stem for path in speaker.store.pool.iterdir()}
    assert pool == {speaker.store.hash("generic")}


def test_what_is_held_are_the_best_on_the_first_utterances(speaker, tell, differences, table):
    draw = seeding.generator(3, 1, speaker.name, "race")
    first, survivors = racing.first_rung(len(NAMES), 2, table.shape[1], draw, 0.6)
    assert SETTINGS["k"] < survivors < len(NAMES)
    for name in NAMES[::-1]:
        tell(name)
    ranked = sorted(NAMES, key=lambda name: (table[NAMES.index(name)][first].sum(), name))
    assert held(speaker) == {sha256(differences[name]) for name in ranked[:survivors]}


def test_a_message_that_comes_again_changes_nothing(speaker, tell, expected):
    """A server that was killed asks again what it has no answer to."""
    tell(*NAMES[:4])
    tell(*NAMES[:4])
    tell(*NAMES[4:])
    tell(*NAMES[:4])
    answers = [tell(ends=True), tell(ends=True)]
    assert answers[0] == answers[1]
    assert answers[0]["race"]["kept"] == list(expected.kept)
    # Even where everything is asked anew.
    tell(*NAMES)
    assert held(speaker)
    assert tell(ends=True)["race"]["kept"] == list(expected.kept)
    assert held(speaker) == set()


def test_another_race_starts_from_the_beginning(speaker, tell):
    tell(*NAMES)
    few = tell(*NAMES[:3], candidates=3, round=2)
    assert few["errors"] == {}
    assert tell(*NAMES[:3], ends=True, candidates=3, round=2)["race"]["exhaustive"] == 3 * 9
    assert held(speaker) == set()


@pytest.mark.parametrize("change", [{"seed": 4}, {"round": 2}])
def test_the_order_of_the_utterances_follows_from_seed_and_round(speaker, tell, table, change):
    """Which words the last ones were judged on tells which utterances came first."""
    answers = []
    for more in ({}, change):
        tell(*NAMES, **more)
        answers.append(tell(ends=True, **more)["errors"])
    assert answers[0] != answers[1]


def test_candidates_that_never_came_are_told(speaker, tell):
    tell(*NAMES[:6])
    with pytest.raises(ModelError, match="ends with other candidates than those that came"):
        tell(ends=True)
    tell(NAMES[6])
    assert tell(ends=True)["race"]["kept"]


def test_a_candidate_that_the_disk_lost_is_told(speaker, tell):
    tell(*NAMES)
    for path in (speaker.store.folder / "candidates").iterdir():
        path.unlink()
    with pytest.raises(ModelError, match="not a readable model"):
        tell(ends=True)
    tell(*NAMES)
    assert tell(ends=True)["race"]["kept"]


def test_a_candidate_that_does_not_fit_is_told(speaker, tell, differences, monkeypatch):
    broken = dict(differences[NAMES[2]])
    broken.pop("output.bias")
    monkeypatch.setitem(differences, NAMES[2], broken)
    with pytest.raises(ModelError, match=r"tensor output\.bias is missing"):
        tell(*NAMES)


def test_what_single_utterances_tell_stays_on_the_device(speaker, tell):
    """Sums of at least two utterances are told, and which ones these are is not."""
    tell(*NAMES)
    answer = tell(ends=True)
    assert set(answer) == {"errors", "words", "part", "race"}
    assert set(answer["race"]) == {"kept", "words", "decodings", "exhaustive", "confident"}
    assert all(isinstance(value, int) for value in answer["errors"].values())
    assert all(isinstance(value, int) for value in answer["race"]["words"].values())
    (least, *_) = sorted(speaker.words("train"))
    assert min(answer["race"]["words"].values()) >= 2 * least
