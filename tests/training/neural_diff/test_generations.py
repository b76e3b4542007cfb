"""What each generation has learned from: nested shares, and domains that are added."""

import itertools

import pytest

from fedspeech.errors import ConfigError, CorpusError


def spoken(task, generation, settings, seed=0):
    return [u.id for u in task.course(generation, settings.training, seed, "any").utterances]


def test_each_share_holds_the_one_before_and_has_its_seconds(recognition, settings, task):
    config = settings(recognition())
    found = task(config)
    parts = [spoken(found, t, config) for t in range(3)]
    assert len(parts[2]) == len(set(parts[2])) == 36  # three speakers train
    seconds = {
        u.id: len(u.log_mel[1.0]) / 100 for u in found.course(2, config.training, 0, "").utterances
    }
    for smaller, larger in itertools.pairwise(parts):
        assert smaller == larger[: len(smaller)]
    total, longest = sum(seconds.values()), max(seconds.values())
    for share, part in zip((0.5, 0.8, 1.0), parts, strict=True):
        assert share * total - longest - 0.1 < sum(map(seconds.get, part)) < share * total + 0.1
    assert spoken(found, 0, config, seed=1) != parts[0]
    assert [g["label"] for g in found.generations] == ["50 %", "80 %", "100 %"]


def test_nobody_who_tests_trains(recognition, settings, task):
    config = settings(recognition())
    found = task(config)
    errors = found.errors(found.model(0), 0, 0)
    assert list(errors) == ["t03"]
    assert not [id for id in spoken(found, 2, config) if id.startswith("t03")]
    assert errors["t03"].words.shape == (12,)


def test_phrases_and_tokens_are_added_after_those_that_are_known(understanding, settings, task):
    config = settings(understanding())
    found = task(config)
    told = found.generations
    assert [g["label"] for g in told] == ["first, second", "+ third", "+ fourth"]
    assert [g["phrases"] for g in told] == [3, 4, 5]
    courses = [found.course(t, config.training, 0, "any") for t in range(3)]
    for t, course in enumerate(courses):
        said = {u.text for u in course.utterances}
        assert said == {"ba", "di", "gu", "ke", "lo"} - set(["ke", "lo"][t:])
        assert {u.text: r for u, r in zip(course.utterances, course.references, strict=True)} == {
            word: [number] for number, word in enumerate(["ba", "di", "gu", "ke", "lo"][: 3 + t])
        }
    rows = [len(found.model(t).embedding.weight) for t in range(3)]
    assert rows == [2 + len("badigu") - 1 + 1, 2 + len("badiguke"), 2 + len("badigukelo")]


def test_f_0_is_wrong_about_every_phrase_that_it_does_not_know(understanding, settings, task):
    found = task(settings(understanding()))
    model = found.model(0)
    own = found.errors(model, 0, 0)["t03"]
    later = found.errors(model, 0, 2)["t03"]
    assert (len(own.errors), len(later.errors)) == (6, 10)
    assert later.errors.sum() == own.errors.sum() + 4
    assert set(later.words) == {1}


def test_a_domain_that_nobody_speaks_of_is_refused(understanding, settings, task):
    given = understanding()
    given["understanding"]["domains"]["fourth"] = ["zu", "ze"]
    said = r"domains\.fourth: no training speech has meaning = 'zu', 'ze'"
    with pytest.raises(ConfigError, match=said):
        task(settings(given))


def test_a_field_that_is_not_there_is_refused(understanding, settings, task):
    given = understanding()
    given["understanding"]["field"] = "intent"
    with pytest.raises(CorpusError, match=r"understanding\.field: utterance .* no field 'intent'"):
        task(settings(given))
