import logging
from pathlib import Path

import pytest
from lhotse import CutSet

from fedspeech.config.corpus import HeldOut, PartitionSettings, TrainPart
from fedspeech.corpus.cuts import speaker_of
from fedspeech.corpus.partition import client, partition, pseudonym, train_and_test
from fedspeech.errors import ConfigError, CorpusError


@pytest.fixture
def corpus(spoken) -> CutSet:
    """Speakers a … f with ten utterances of 2 s each, the speakers' utterances interleaved."""
    return CutSet.from_cuts(
        [spoken(speaker, number, 2.0, round=number) for number in range(10) for speaker in "fedcba"]
    )


def settings(**changes) -> PartitionSettings:
    train = changes.pop("train", {"seconds": 10.0})
    return PartitionSettings(**{"generic": 3, "train": TrainPart(**train), **changes})


def speakers(cuts) -> list[str]:
    return sorted({speaker_of(cut) for cut in cuts})


def numbers(cuts) -> list[int]:
    return [int(cut.id.rpartition("-")[2]) for cut in cuts]


def listed(tmp_path: Path, *ids: str) -> str:
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(ids) + "\n")
    return str(path)


def test_numbers_take_the_first_by_id_and_the_last_as_development(corpus):
    parts = partition(corpus, settings(generic=3, development=1, clients=2))
    assert speakers(parts.generic) == ["a", "b"] and speakers(parts.development) == ["c"]
    assert [c.speaker for c in parts.clients] == ["d", "e"]
    assert len(parts.generic) == 20 and len(parts.development) == 10
    assert parts.left_out == {}


def test_names_lists_and_the_rest(corpus, tmp_path):
    parts = partition(
        corpus, settings(generic=("e", "b"), development=("e",), clients=listed(tmp_path, "f", "a"))
    )
    assert speakers(parts.generic) == ["b"] and speakers(parts.development) == ["e"]
    assert [c.speaker for c in parts.clients] == ["a", "f"]
    rest = partition(corpus, settings(generic=("e", "b"), clients="rest"))
    assert [c.speaker for c in rest.clients] == ["a", "c", "d", "f"]


def test_no_clients_speech_touches_the_generic_part(corpus):
    parts = partition(corpus, settings(generic=4, development=2))
    of_g = {cut.id for cut in [*parts.generic, *parts.development]}
    of_clients = [cut.id for c in parts.clients for cut in [*c.train, *c.test]]
    assert not of_g & set(of_clients)
    assert len(of_g) + len(of_clients) == len(set(of_clients)) + 40 == 60


@pytest.mark.parametrize("clients", [("c", "d"), ("d", "a")])
def test_a_speaker_in_two_parts(corpus, clients):
    with pytest.raises(
        ConfigError, match=r"speaker [ac] is in partition.generic and in partition.c"
    ):
        partition(corpus, settings(generic=3, clients=clients))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generic": ("a", "a", "b")}, r"partition\.generic: speaker a is named twice"),
        ({"clients": ("z",)}, r"partition\.clients: no speech of speaker 'z'"),
        ({"development": ("d",)}, r"partition\.development: no speech of speaker 'd'"),
        ({"generic": 7}, r"partition\.generic: 7 speakers, but there are only 6"),
        ({"generic": 5, "clients": 2}, r"partition\.clients: 2 speakers, but there are only 1"),
        ({"generic": 6}, r"partition\.clients: no speaker is left"),
        ({"generic": 2, "development": 2}, "all generic speakers are development speakers"),
        ({"generic": "nowhere.txt"}, r"partition\.generic: cannot read the list .*nowhere\.txt"),
    ],
)
def test_speakers_that_cannot_be_had(corpus, changes, message):
    with pytest.raises(ConfigError, match=message):
        partition(corpus, settings(**changes))


def test_what_a_list_names_and_the_corpus_lacks_is_warned_of(corpus, tmp_path, caplog):
    absent = [f"z{i}" for i in range(7)]
    with caplog.at_level(logging.WARNING):
        parts = partition(corpus, settings(clients=listed(tmp_path, *absent, "e")))
    assert [c.speaker for c in parts.clients] == ["e"]
    assert caplog.messages == [
        f"partition.clients: 7 of the 8 speakers in {tmp_path / 'ids.txt'} have no speech "
        "(z0, z1, z2, z3, z4, …)"
    ]
    with pytest.raises(ConfigError, match=r"7 of the 7 speakers in .*ids\.txt have no speech"):
        partition(corpus, settings(clients=listed(tmp_path, *absent)))
    with pytest.raises(ConfigError, match=r"ids\.txt names no speaker"):
        partition(corpus, settings(clients=listed(tmp_path)))


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"seconds": 10.0}, [0, 1, 2, 3, 4]),
        ({"seconds": 11.9}, [0, 1, 2, 3, 4]),
        ({"seconds": 300.0}, list(range(10))),
        ({"seconds": 1.9}, []),
        ({"fraction": 0.5}, [0, 1, 2, 3, 4]),
        ({"fraction": 0.75}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"field": "round", "values": (7, 1, 4)}, [1, 4, 7]),
        ({"field": "round", "values": ("1",)}, []),
    ],
)
def test_train_s_and_all_the_rest(spoken, train, expected):
    cuts = [spoken("a", number, 2.0, round=number) for number in range(10)]
    cut = client("a", cuts, TrainPart(**train))
    assert numbers(cut.train) == expected
    assert numbers(cut.test) == [number for number in range(10) if number not in expected]


def test_train_s_ends_at_the_first_utterance_that_does_not_fit(spoken):
    cuts = [spoken("a", number, seconds) for number, seconds in enumerate([3.0, 4.0, 5.0, 1.0])]
    cut = client("a", cuts, TrainPart(seconds=8.0))
    assert numbers(cut.train) == [0, 1] and numbers(cut.test) == [2, 3]


def test_three_tenths_are_three_times_a_tenth(spoken):
    assert 0.1 + 0.1 + 0.1 > 0.3
    cuts = [spoken("a", number, 0.1) for number in range(5)]
    assert numbers(client("a", cuts, TrainPart(seconds=0.3)).train) == [0, 1, 2]


def test_a_field_that_an_utterance_lacks(spoken):
    told = r"partition\.train\.field: utterance a-1 has no field 'round', it has "
    with pytest.raises(CorpusError, match=f"{told}none$"):
        client("a", [spoken("a", 1, 1.0)], TrainPart(field="round", values=(1,)))
    with pytest.raises(CorpusError, match=f"{told}runde, part$"):
        speech = [spoken("a", 1, 1.0, runde=1, part="x")]
        client("a", speech, TrainPart(field="round", values=(1,)))


def test_speakers_with_too_little_speech_are_left_out_and_named(spoken):
    few = [("d", 3, 2.0), ("e", 3, 0.4), ("f", 10, 2.0), ("g", 1, 2.0)]
    corpus = CutSet.from_cuts(
        [spoken(s, i, 2.0) for s in "abc" for i in range(4)]
        + [spoken(s, i, seconds) for s, count, seconds in few for i in range(count)]
    )
    parts = partition(corpus, settings(generic=3, train={"seconds": 8.0}))
    assert [c.speaker for c in parts.clients] == ["f"]
    assert parts.left_out == {
        "d": "test_s has no utterance",
        "e": "test_s has no utterance",
        "g": "train_s has 2.0 s in 1 utterances, expected at least 1 s in 2",
    }
    strict = settings(generic=3, train={"fraction": 0.7}, least_seconds=1.0)
    assert partition(corpus, strict).left_out == {
        "e": "train_s has 0.8 s in 2 utterances, expected at least 1 s in 2",
        "g": "train_s has 2.0 s in 1 utterances, expected at least 1 s in 2",
    }
    with pytest.raises(
        CorpusError, match=r"none of 4 clients has enough speech; d: train_s has 6.0 s"
    ):
        partition(corpus, settings(generic=3, train={"fraction": 0.99}, least_seconds=60))


def test_a_pseudonym_hides_the_speaker_and_follows_from_the_seed():
    assert pseudonym(0, "anna") == pseudonym(0, "anna")
    assert len({pseudonym(seed, name) for seed in (0, 1) for name in ("anna", "berta")}) == 4
    assert "anna" not in pseudonym(0, "anna") and len(pseudonym(0, "anna")) == 17


def test_the_last_speakers_by_id_test_and_all_others_train(corpus):
    train, test = train_and_test(corpus, HeldOut(speakers=2))
    assert (speakers(train), speakers(test)) == (["a", "b", "c", "d"], ["e", "f"])
    assert (len(train), len(test)) == (40, 20)
    train, test = train_and_test(corpus, HeldOut(speakers=("b",)))
    assert speakers(test) == ["b"] and numbers(test) == list(range(10))


def test_a_field_of_the_manifest_says_what_tests(spoken):
    cuts = [spoken(speaker, 0, 1.0, part=part) for speaker, part in zip("abc", "xyx", strict=True)]
    train, test = train_and_test(cuts, HeldOut(field="part", values=("y",)))
    assert (speakers(train), speakers(test)) == (["a", "c"], ["b"])


@pytest.mark.parametrize("wrong", ["z", 1])
def test_a_value_that_no_utterance_has_lets_nothing_train_that_was_to_test(spoken, wrong):
    cuts = [spoken(speaker, 0, 1.0, part=part) for speaker, part in zip("abc", "xy1", strict=True)]
    told = rf"^test\.values: no utterance has part = {wrong!r}; there are '1', 'x', 'y'$"
    with pytest.raises(ConfigError, match=told):
        train_and_test(cuts, HeldOut(field="part", values=("y", wrong)))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"field": "round", "values": (1, 2)}, "speaker a has speech that trains and speech that"),
        ({"field": "part", "values": ("x",)}, r"test\.field: utterance .* has no field 'part'"),
        ({"speakers": 6}, "0 utterances train and 60 test"),
    ],
)
def test_speech_that_cannot_be_split_is_refused(corpus, part, message):
    with pytest.raises(CorpusError, match=message):
        train_and_test(corpus, HeldOut(**part))
