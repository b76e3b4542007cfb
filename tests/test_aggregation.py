import asyncio
import warnings

import numpy as np
import pytest
import torch

from fedspeech.aggregation import (
    AggregationRule,
    Question,
    WordErrors,
    ask_peers,
    ask_together,
    check_weights,
    equal_weights,
)
from fedspeech.errors import ModelError, RuleError
from fedspeech.testing import DummyFederation

SPEAKERS = ("a", "b", "c")


@pytest.mark.parametrize(
    "weights",
    [{}, {"b": 1.0}, {"b": 0.25, "c": 0.75}, {"b": 0.0, "c": 1}, {"b": np.float64(1)}],
)
def test_valid_weights_pass(weights):
    check_weights(AggregationRule(), "a", weights, SPEAKERS)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"b": float("nan")}, "the weight nan on b; expected a finite number of at least 0"),
        ({"b": -0.5, "c": 1.5}, "the weight -0.5 on b"),
        ({"b": float("inf")}, "the weight inf on b"),
        ({"b": "1"}, "the weight 1 on b"),
        ({"b": None}, "the weight None on b"),
        ({"a": 0.0, "b": 1.0}, r"a weight on itself \(0.0\)"),
        ({"b": 0.5, "d": 0.5}, "an unknown peer: d"),
        ({"b": 0.5, "c": 0.4}, "weights that sum to 0.9, not to 1"),
        ({"b": 0.0}, "weights that sum to 0.0"),
        (["b"], r"\['b'\]; expected a mapping"),
        (None, "None; expected a mapping"),
    ],
)
def test_other_weights_are_refused(weights, told):
    with pytest.raises(RuleError, match=f"rule AggregationRule gave speaker a {told}"):
        check_weights(AggregationRule(), "a", weights, SPEAKERS)


def test_equal_weights_sum_to_one():
    assert equal_weights(["x", "y", "z", "w"]) == dict.fromkeys("xyzw", 0.25)
    assert equal_weights([]) == {}


def test_word_error_rate():
    assert WordErrors(3, 12).rate == 0.25
    assert WordErrors(0, 0).rate == 0


class Shares(AggregationRule):
    """A quarter of the next speaker and three quarters of the one before."""

    async def peers(self, speaker, view):
        here = view.speakers.index(speaker)
        after = view.speakers[(here + 1) % len(view.speakers)]
        return {view.speakers[here - 1]: 0.75, after: 0.25}


def test_the_default_base_is_the_weighted_average_of_the_peers():
    federation = DummyFederation(speakers=3)
    before, after = federation.personal["s00"], federation.personal["s02"]
    for name, tensor in federation.bases(Shares())["s01"].items():
        expected = 0.75 * before[name].double().numpy() + 0.25 * after[name].double().numpy()
        rounding = 2**-24 if tensor.itemsize == 4 else 1e-15
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=rounding)


def test_the_default_peers_are_all_others():
    assert DummyFederation(speakers=3).peers(AggregationRule())["s01"] == {"s00": 0.5, "s02": 0.5}


def mixed(alpha):
    federation = DummyFederation(speakers=2)
    personal, base = federation.personal["s00"], federation.generic
    result = AggregationRule().mix(personal.items(), base.items(), alpha)
    return personal, base, dict(result)


def test_mixing_with_alpha_one_is_the_personal_model_and_with_zero_the_base_bit_for_bit():
    personal, base, all_personal = mixed(1)
    assert all(all_personal[name].equal(tensor) for name, tensor in personal.items())
    _, _, all_base = mixed(0)
    assert all(all_base[name].equal(tensor) for name, tensor in base.items())
    assert any(not base[name].equal(tensor) for name, tensor in personal.items())


def test_the_mix_is_alpha_personal_and_the_rest_base():
    personal, base, half = mixed(0.3)
    for name, tensor in half.items():
        expected = 0.3 * personal[name].numpy() + 0.7 * base[name].numpy()
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_models_that_do_not_fit_together_are_not_mixed():
    personal, base, _ = mixed(1)
    base["output.bias"] = torch.zeros(6, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"output.bias \(5,\) beside output.bias \(6,\)"):
        dict(AggregationRule().mix(personal.items(), base.items(), 0.5))


async def asks(*numbers):
    """Adds up what it is answered for each number, one question after the other."""
    return sum([await Question(number) for number in numbers])


def test_what_all_wait_for_is_one_exchange():
    exchanges = []

    def exchange(questions):
        exchanges.append(list(questions.items()))
        return {name: 10 * asked for name, asked in reversed(questions.items())}

    results = ask_together({"c": asks(3), "a": asks(1), "b": asks(2)}, exchange)
    assert exchanges == [[("a", 1), ("b", 2), ("c", 3)]]
    assert list(results.items()) == [("a", 10), ("b", 20), ("c", 30)]


def test_who_asks_more_often_gets_further_exchanges_with_those_who_do_too():
    exchanges = []

    def exchange(questions):
        exchanges.append(dict(questions))
        return questions

    results = ask_together(
        {"a": asks(1, 2, 3), "b": asks(), "c": asks(4), "d": asks(5, 6)}, exchange
    )
    assert exchanges == [{"a": 1, "c": 4, "d": 5}, {"a": 2, "d": 6}, {"a": 3}]
    assert list(results.items()) == [("a", 6), ("b", 0), ("c", 4), ("d", 11)]


def test_nobody_asks_nothing_is_exchanged():
    def exchange(questions):
        raise AssertionError("nobody asked")

    assert ask_together({"a": asks(), "b": asks()}, exchange) == {"a": 0, "b": 0}
    assert ask_together({}, exchange) == {}


def test_who_gets_no_answer_drops_out_and_is_closed():
    closed = []

    async def watched(name):
        try:
            return await Question(name)
        finally:
            closed.append(name)

    answers = {"a": 1, "c": None, "stranger": 5}
    results = ask_together({name: watched(name) for name in "abc"}, lambda _: answers)
    assert results == {"a": 1, "c": None}
    assert sorted(closed) == ["a", "b", "c"]


def test_an_error_in_one_leaves_no_other_open():
    async def fails():
        raise RuleError("no peers today")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        waiting = asks(1)
        never_started = asks(2)
        with pytest.raises(RuleError, match="no peers today"):
            ask_together({"a": waiting, "b": fails(), "c": never_started}, dict)
        assert waiting.cr_frame is None
        assert never_started.cr_frame is None
        del waiting, never_started


def test_awaiting_anything_else_is_refused():
    async def sleeps():
        await asyncio.sleep(0)

    with pytest.raises(RuleError, match="awaited None for a; it can await the view's word_errors"):
        ask_together({"a": sleeps()}, dict)


def test_peers_have_to_be_a_coroutine_and_their_answers_valid():
    class Plain(AggregationRule):
        def peers(self, speaker, view):
            return {}

    class Selfish(AggregationRule):
        async def peers(self, speaker, view):
            return {speaker: 1.0}

    federation = DummyFederation(speakers=2)
    with pytest.raises(RuleError, match="rule Plain: write `async def peers`"):
        federation.peers(Plain())
    with pytest.raises(RuleError, match="rule Selfish gave speaker s00 a weight on itself"):
        federation.peers(Selfish())


def test_speakers_whose_device_does_not_answer_get_no_peers():
    class Asking(AggregationRule):
        async def peers(self, speaker, view):
            others = [other for other in view.speakers if other != speaker]
            return equal_weights(sorted(await view.word_errors(others)))

    federation = DummyFederation(speakers=3)
    views = {speaker: federation.view(speaker) for speaker in federation.speakers}
    silent = {"s01"}

    def exchange(questions):
        return {s: a for s, a in federation.exchange(questions).items() if s not in silent}

    assert ask_peers(Asking(), views, exchange) == {
        "s00": {"s01": 0.5, "s02": 0.5},
        "s02": {"s00": 0.5, "s01": 0.5},
    }
    assert federation.exchanges == 1
