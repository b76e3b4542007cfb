import math

import pytest
import torch

from clients import speaker as module
from clients.speaker import Speaker
from fedspeech.config.training import PersonalSettings
from fedspeech.corpus import cuts
from fedspeech.device import voice
from fedspeech.device.store import BASE, VALIDATION
from fedspeech.errors import CorpusError, ModelError
from fedspeech.evaluation import word_errors
from fedspeech.tensors import add, sha256
from fedspeech.training import thrift
from fedspeech.training.personal import fine_tune

SETTINGS = PersonalSettings(epochs=1, batch_size=4)
ASKED = {
    "seed": 5,
    "round": 2,
    "settings": SETTINGS.model_dump(mode="json"),
    "generation": "g",
    "start": None,
}


def moved(model, by: float):
    """Another model near to this one."""
    draw = torch.Generator().manual_seed(1)
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in model.items()}


def mixed(left, right, alpha: float):
    """By hand, in float64."""
    return {n: (alpha * left[n].double() + (1 - alpha) * right[n].double()).float() for n in left}


def errors(model, description, utterances) -> list[int]:
    found = word_errors(
        description.module(model), utterances, description.features, description.units
    )
    return found.errors.tolist()


@pytest.fixture
def tuned(speaker):
    """The device has fine-tuned; P_s."""
    speaker.personalize(ASKED)
    return speaker.personal()


def test_it_says_how_much_speech_trains(speaker, client, generic):
    said = speaker.describe()
    assert said["seconds"] == pytest.approx(sum(cut.duration for cut in client.train), abs=1e-3)
    assert said["utterances"] == len(client.train) == 9
    assert said["generation"] == sha256(generic)
    assert said["speaker"] != client.speaker


def test_a_folder_without_speech_is_told(tmp_path):
    with pytest.raises(CorpusError, match=r"device\.json: no speaker's speech here"):
        Speaker(tmp_path)


def test_g_is_taken_over_or_expected(folders, description, generic):
    me = Speaker(folders[1])
    with pytest.raises(ModelError, match=r"expected generation .*, this device holds None"):
        me.check_generic(sha256(generic))
    me.receive_generic(description.to_json(), generic)
    me.check_generic(sha256(generic))
    with pytest.raises(ModelError, match="expected generation abc, this device holds"):
        me.check_generic("abc")
    assert me.describe()["generation"] == sha256(generic)


def test_how_the_owner_sounds_is_kept_for_later(speaker, tuned, heard, description):
    """A device transcribes as it was fine-tuned, whether the recordings are still there or not."""
    assert (speaker.folder / voice.VOICE).exists()
    found = voice.normalization(speaker.folder, description.features)
    expected = speaker.utterances("train")[0].normalization
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.deviation, expected.deviation)


def test_p_is_what_the_local_loop_makes_of_g(speaker, client, heard, generic, description):
    difference, said = speaker.personalize(ASKED)
    utterances = heard(client.train, SETTINGS.augmentation.speeds)
    name = (5, 2, speaker.name, "personalize")
    expected = fine_tune(generic, description, SETTINGS, utterances, name)
    assert (said["losses"], said["skipped"]) == (expected.losses, 0)
    for tensor, whole in expected.model.items():
        assert torch.allclose(generic[tensor] + difference[tensor], whole, atol=1e-6)
    # Both sides take P_s as G + difference.
    assert sha256(speaker.personal()) == sha256(dict(add(generic.items(), difference)))


@pytest.mark.parametrize("free", [2**60, 2**16])
def test_what_judges_alpha_is_fine_tuned_on_the_first_four_fifths(
    speaker, client, heard, generic, description, monkeypatch, free
):
    """With much memory, and with little, in which it is not held until P_s is there."""
    monkeypatch.setattr(module.machine, "memory_free_bytes", lambda: free)
    monkeypatch.setattr(thrift, "_hand_back", lambda: None)  # it would stay in this process
    written = []
    (speaker.folder / ".validation.aside.77.part").write_bytes(b"of a process that was killed")
    real = module.tensors.write
    monkeypatch.setattr(module.tensors, "write", lambda *a: written.append(a[0].name) or real(*a))
    speaker.personalize(ASKED)
    assert ("validation.aside" in written) is (free == 2**16)
    left = [path.name for path in speaker.folder.iterdir() if "aside" in path.name]
    assert left == ([] if free == 2**16 else [".validation.aside.77.part"])
    first = heard(client.train, SETTINGS.augmentation.speeds)[:-2]
    name = (5, 2, speaker.name, "validate")
    expected = fine_tune(generic, description, SETTINGS, first, name)
    assert sha256(speaker.store.get(VALIDATION)) == sha256(expected.model)


def test_what_is_finished_is_not_trained_again(speaker, monkeypatch):
    first = speaker.personalize(ASKED)
    calls = []
    real = module.fine_tune
    monkeypatch.setattr(module, "fine_tune", lambda *a: calls.append(a) or real(*a))
    again = Speaker(speaker.folder).personalize(ASKED)
    assert calls == []
    assert (sha256(again[0]), again[1]) == (sha256(first[0]), first[1])
    other = speaker.personalize({**ASKED, "seed": 6})
    assert len(calls) == 2  # P_s, and what judges alpha
    assert sha256(other[0]) != sha256(first[0])


def test_who_has_other_speech_by_now_is_fine_tuned_again(speaker, client):
    """A box cuts its owner's recordings anew for each run, which may ask for the same otherwise."""
    first, _ = speaker.personalize(ASKED)
    cuts.write(speaker.folder / "train.jsonl", client.train[1:])
    again, _ = Speaker(speaker.folder).personalize(ASKED)
    assert sha256(again) != sha256(first)


def test_a_later_round_starts_from_the_mix(speaker, tuned, client, heard, generic, description):
    base = moved(generic, 0.01)
    installed = speaker.install(base)
    start, judge = {"installed": installed, "alpha": 0.25}, speaker.store.get(VALIDATION)
    speaker.personalize({**ASKED, "round": 3, "start": start})
    utterances = heard(client.train, SETTINGS.augmentation.speeds)
    name = (5, 3, speaker.name, "personalize")
    expected = fine_tune(mixed(tuned, base, 0.25), description, SETTINGS, utterances, name)
    found = speaker.personal()
    for tensor, whole in expected.model.items():
        assert torch.allclose(found[tensor], whole, atol=1e-5)
    # What judges alpha goes on from what it was: P_s has learned the speech that it judges on.
    name = (5, 3, speaker.name, "validate")
    begin = mixed(judge, base, 0.25)
    expected = fine_tune(begin, description, SETTINGS, utterances[:-2], name)
    for tensor, found in speaker.store.get(VALIDATION).items():
        assert torch.allclose(found, expected.model[tensor], atol=1e-6)
    with pytest.raises(ModelError, match="expected M_s 0123, this device holds"):
        speaker.personalize({**ASKED, "round": 4, "start": {**start, "installed": "0123"}})


def test_candidates_are_judged_on_train_s_only(speaker, client, heard, generic, description):
    other = moved(generic, 0.02)
    difference = {name: other[name] - generic[name] for name in other}
    (found,) = speaker.judge([difference], "train")
    model = dict(add(generic.items(), difference))
    expected = errors(model, description, heard(client.train))
    assert found.errors.tolist() == expected
    assert found.words.tolist() == speaker.words("train").tolist()
    chosen = [7, 0, 4]
    nothing = {name: torch.zeros_like(tensor) for name, tensor in generic.items()}
    first, second = speaker.judge([nothing, difference], "train", chosen)
    assert first.errors.tolist() == errors(
        generic, description, [heard(client.train)[i] for i in chosen]
    )
    assert second.errors.tolist() == [expected[i] for i in chosen]
    with pytest.raises(ModelError, match="judged on train_s only, not on 'test'"):
        list(speaker.judge([difference], "test"))
    with pytest.raises(ModelError, match=r"tensor output\.bias is missing"):
        list(speaker.judge([{k: v for k, v in difference.items() if k != "output.bias"}], "train"))


def test_mixes_are_judged_on_test_s(speaker, tuned, client, heard, generic, description):
    base = moved(generic, 0.05)
    alphas = [0.0, 0.25, 1.0]
    found = speaker.test_errors(base, alphas, sha256(tuned))
    utterances = heard(client.test)
    for alpha, counts in zip(alphas, found, strict=True):
        assert counts.errors.tolist() == errors(mixed(tuned, base, alpha), description, utterances)
    with pytest.raises(ModelError, match="expected P_s abc, this device holds"):
        speaker.test_errors(base, alphas, "abc")


def test_m_is_what_was_sent_or_g(speaker, generic):
    base = moved(generic, 0.05)
    assert speaker.install(base) == sha256(base)
    assert sha256(speaker.store.get(BASE)) == sha256(base)
    assert speaker.install(None) == sha256(generic)
    assert sha256(speaker.base_model(sha256(base), base)) == sha256(base)
    assert sha256(speaker.base_model(sha256(generic), None)) == sha256(generic)
    with pytest.raises(ModelError, match="expected M_s"):
        speaker.base_model(sha256(base), None)
    for wrong in (
        {**generic, "output.bias": generic["output.bias"] * math.nan},
        {**generic, "output.bias": generic["output.bias"][1:]},
    ):
        with pytest.raises(ModelError, match=r"tensor output\.bias has"):
            speaker.install(wrong)
        with pytest.raises(ModelError, match=r"tensor output\.bias has"):
            speaker.base_model(sha256(wrong), wrong)
    assert sha256(speaker.store.get(BASE)) == sha256(generic)  # what was judged only is not kept


def test_alpha_is_chosen_on_the_last_fifth_of_train_s(
    speaker, tuned, client, heard, generic, description
):
    base = moved(generic, 0.05)
    judge, held_out = speaker.store.get(VALIDATION), heard(client.train)[-2:]
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    counted = [sum(errors(mixed(judge, base, a), description, held_out)) for a in alphas]
    best = [a for a, count in zip(alphas, counted, strict=True) if count == min(counted)]
    assert speaker.choose_alpha(base, alphas) == best[(len(best) - 1) // 2]


@pytest.mark.parametrize(
    ("alphas", "expected"), [([0.0, 0.5, 1.0], 0.5), ([0.0, 0.2, 0.4, 0.6], 0.2), ([0.3], 0.3)]
)
def test_of_equally_good_alphas_the_middle_one_is_chosen(speaker, tuned, alphas, expected):
    base = speaker.store.get(VALIDATION)  # every mix is the same model
    assert speaker.choose_alpha(base, alphas) == expected


def test_flowers_plain_route_fine_tunes_what_was_sent(speaker, client, heard, generic, description):
    begin = moved(generic, 0.03)
    utterances = heard(client.train, SETTINGS.augmentation.speeds)
    name = (5, 1, speaker.name, "improve")
    for mu in (0.0, 10.0):
        model, loss = speaker.improve(begin, description, SETTINGS, 5, 1, mu)
        expected = fine_tune(begin, description, SETTINGS, utterances, name, mu)
        assert sha256(model) == sha256(expected.model)
        assert loss == expected.losses[-1]
    assert speaker.model_errors(begin, description).errors.tolist() == errors(
        begin, description, heard(client.test)
    )
