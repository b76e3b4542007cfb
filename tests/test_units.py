import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedspeech.config.model import UnitSettings
from fedspeech.errors import CorpusError
from fedspeech.units import BLANK, SPACE, Units, learn

TEXTS = ["go left", "go right now", "left ear", "نعم لا", "he's naïve", "e\u0301 ﬁne ½"] * 4
WORDS = sorted({word for text in TEXTS for word in text.split()})
LETTERS = sorted({letter for word in WORDS for letter in word})


@pytest.fixture(scope="module", params=["words", "characters", "pieces"])
def units(request) -> Units:
    return learn(TEXTS, UnitSettings(kind=request.param, size=32))


spoken = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@given(spoken)
def test_what_was_encoded_is_decoded(units, text):
    numbers = units.encode(text)
    assert units.decode(numbers) == text
    assert all(0 < number < len(units) for number in numbers)  # the blank is never spelled


@given(spoken)
def test_blanks_spell_nothing(units, text):
    numbers = units.encode(text)
    apart = [n for number in numbers for n in (0, number, 0)]
    assert units.decode(apart) == text


@given(spoken, st.integers(0, 40))
def test_what_is_spelled_in_two_parts_is_what_is_spelled_at_once(units, text, cut):
    numbers = units.encode(text)
    apart = units.spell(numbers[:cut]) + units.spell(numbers[cut:])
    assert apart == units.spell(numbers) and " ".join(apart.split()) == text
    assert (units.kind == "words") <= (apart == "" or apart.endswith(" "))


@given(st.lists(st.text(LETTERS, min_size=1), max_size=5).map(" ".join))
def test_characters_and_pieces_spell_words_that_were_never_heard(text):
    for kind in ("characters", "pieces"):
        units = learned(kind)
        assert units.decode(units.encode(text)) == text


def learned(kind: str, found: dict[str, Units] = {}) -> Units:  # noqa: B006  (learned once)
    if kind not in found:
        found[kind] = learn(TEXTS, UnitSettings(kind=kind, size=32))
    return found[kind]


def test_the_vocabulary_is_what_was_heard():
    assert learned("words").vocabulary == (BLANK, *WORDS)
    assert learned("characters").vocabulary == (BLANK, SPACE, *LETTERS)
    pieces = learned("pieces")
    assert pieces.vocabulary[0] == BLANK and len(set(pieces.vocabulary)) == len(pieces)
    assert len(pieces) == 32 - 3 + 1  # without <s>, </s>, <unk>; with the blank
    assert not {"<s>", "</s>", "<unk>"} & set(pieces.vocabulary)
    assert "▁left" in pieces.vocabulary


def test_learning_does_not_depend_on_the_order_of_texts():
    for kind in ("words", "characters"):
        assert learn(TEXTS[::-1], UnitSettings(kind=kind)).vocabulary == learned(kind).vocabulary


def test_words_are_numbered_from_1_in_their_order():
    units = learn(["b a", "c a"], UnitSettings(kind="words"))
    assert units.encode("c a b") == [3, 1, 2]
    assert units.decode([3, 0, 0, 1]) == "c a"
    assert units.encode("") == [] and units.decode([0, 0]) == ""


def test_characters_have_a_unit_for_the_space_between_words():
    units = learn(["ab a"], UnitSettings(kind="characters"))
    assert units.encode(" b  a ") == [3, 1, 2]
    assert units.decode([1, 3, 1, 1, 2, 1]) == "b a"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("go zebra zoo", "words: not in the vocabulary: zebra zoo (in 'go zebra zoo')"),
        ("go qx", "characters: not in the vocabulary: q x (in 'go qx')"),
        ("go q", "pieces: not in the vocabulary: q (in 'go q')"),
        ("<blank>", "words: not in the vocabulary: <blank> (in '<blank>')"),
    ],
)
def test_what_the_vocabulary_lacks_is_named(text, told):
    kind, _, message = told.partition(": ")
    with pytest.raises(CorpusError) as caught:
        learned(kind).encode(text)
    assert str(caught.value) == message


def test_a_word_like_the_blank_is_a_word():
    units = learn(["a <blank>"], UnitSettings(kind="words"))
    assert units.decode(units.encode("<blank> a")) == "<blank> a"


def test_a_space_sign_in_a_text_is_no_unit_of_its_own():
    assert learn(["a▁b"], UnitSettings(kind="characters")).vocabulary == (BLANK, SPACE, "a", "b")


@given(spoken)
def test_json_keeps_everything(units, text):
    again = Units.from_json(json.loads(json.dumps(units.to_json())))
    assert (again.kind, again.vocabulary) == (units.kind, units.vocabulary)
    assert again.encode(text) == units.encode(text)
    assert again.to_json() == units.to_json()


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "words"},
        {"units": ["a"]},
        {"kind": "letters", "units": ["a"]},
        {"kind": "words", "units": [1]},
        {"kind": "words", "units": 3},
        {"kind": "pieces", "units": ["a"]},
        {"kind": "pieces", "units": ["a"], "sentencepiece": "AAAA"},
        {"kind": "pieces", "units": ["a"], "sentencepiece": "!"},
        ["words"],
    ],
)
def test_what_is_no_vocabulary_is_told(content):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Units.from_json(content)


@pytest.mark.parametrize("size", [3, 500])
def test_a_number_of_pieces_that_the_texts_do_not_give_is_told(size):
    with pytest.raises(CorpusError, match=f"^units.size = {size}: .*ocabulary size"):
        learn(TEXTS, UnitSettings(kind="pieces", size=size))
