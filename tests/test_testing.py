"""The test kit itself: rules that break one promise each, and what it says about them."""

import numpy as np
import pytest
import torch

from fedspeech.aggregation import AggregationRule, GroupRule, WordErrors, equal_weights
from fedspeech.testing import DummyFederation, check_rule


def others(speaker, view):
    return [other for other in view.speakers if other != speaker]


class Selfish(AggregationRule):
    async def peers(self, speaker, view):
        return equal_weights(view.speakers)


class Negative(AggregationRule):
    async def peers(self, speaker, view):
        return {others(speaker, view)[0]: -1.0}


class NotANumber(AggregationRule):
    async def peers(self, speaker, view):
        return dict.fromkeys(others(speaker, view), float("nan"))


class Light(AggregationRule):
    async def peers(self, speaker, view):
        return dict.fromkeys(others(speaker, view), 0.1)


class NeedsThree(AggregationRule):
    async def peers(self, speaker, view):
        return equal_weights([others(speaker, view)[1]])


class Crowd(GroupRule):
    def __init__(self, k=1):
        super().__init__(k)

    async def peers(self, speaker, view):
        return equal_weights(others(speaker, view))


class Dice(AggregationRule):
    async def peers(self, speaker, view):
        drawn = np.random.default_rng().uniform(1, 2, len(view.speakers) - 1)
        return dict(zip(others(speaker, view), drawn / drawn.sum(), strict=True))


class Counting(AggregationRule):
    """Its answer depends on how many speakers were asked before."""

    def __init__(self):
        self.asked = 0

    async def peers(self, speaker, view):
        self.asked += 1
        candidates = others(speaker, view)
        return {candidates[self.asked % len(candidates)]: 1.0}


class FirstAsked(AggregationRule):
    """What it learns from the first speaker that is asked goes to all others."""

    def __init__(self):
        self.first = None

    async def peers(self, speaker, view):
        self.first = self.first or speaker
        return equal_weights([o for o in others(speaker, view) if o != self.first])


class FirstAnswered(AggregationRule):
    """The best one; of equal ones the first in the answer, whatever that order is."""

    async def peers(self, speaker, view):
        errors = await view.word_errors(others(speaker, view))
        return {min(errors, key=lambda other: errors[other].rate): 1.0}


class Dividing(AggregationRule):
    def combine(self, speaker, view):
        for name, tensor in view.generic():
            yield name, tensor / torch.zeros_like(tensor)


class Renaming(AggregationRule):
    def combine(self, speaker, view):
        for name, tensor in view.generic():
            yield f"base.{name}", tensor


class Transposing(AggregationRule):
    def combine(self, speaker, view):
        for name, tensor in view.generic():
            yield name, tensor.T if tensor.ndim == 2 else tensor


class Single(AggregationRule):
    def combine(self, speaker, view):
        for name, tensor in view.generic():
            yield name, tensor.float()


class Stuttering(AggregationRule):
    def combine(self, speaker, view):
        for name, tensor in view.generic():
            yield name, tensor
            yield name, tensor


class LayerByLayer(AggregationRule):
    def combine(self, speaker, view):
        for layer in view.layers():
            for name in layer:
                yield from ((n, tensor) for n, tensor in view.generic() if n == name)


class InPlace(AggregationRule):
    def combine(self, speaker, view):
        for name, tensor in view.personal(others(speaker, view)[0]):
            yield name, tensor.mul_(0.5)


class InPlaceTotal(AggregationRule):
    def combine(self, speaker, view):
        for (name, total), (_, own) in zip(view.total(), view.personal(speaker), strict=True):
            yield name, total.sub_(own).to(own.dtype)


class InPlaceDistances(AggregationRule):
    async def peers(self, speaker, view):
        distances = view.distances(view.layers()[0])
        np.fill_diagonal(distances, np.inf)
        return {view.speakers[distances[view.speakers.index(speaker)].argmin()]: 1.0}


class Hoarding(AggregationRule):
    def combine(self, speaker, view):
        whole = dict(view.personal(others(speaker, view)[0]))
        for name, tensor in view.generic():
            yield name, (tensor + whole[name]) / 2


class Eager(AggregationRule):
    def combine(self, speaker, view):
        return {name: tensor * 1 for name, tensor in view.generic()}.items()


class Sharpened(AggregationRule):
    def mix(self, personal, base, alpha):
        for (name, left), (_, right) in zip(personal, base, strict=True):
            yield name, left + (right - left) / alpha


class Plain(AggregationRule):
    def peers(self, speaker, view):
        return equal_weights(others(speaker, view))


class AsksForStrangers(AggregationRule):
    async def peers(self, speaker, view):
        return equal_weights(sorted(await view.word_errors(["nobody"])))


class Impatient(AggregationRule):
    async def peers(self, speaker, view):
        return view.weights


class Stranger:
    def peers(self, speaker, view):
        return {}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Selfish, "among 2 speakers: rule Selfish gave speaker s00 a weight on itself"),
        (Negative, "gave speaker s00 the weight -1.0 on s01; expected a finite number"),
        (NotANumber, "gave speaker s00 the weight nan on s01"),
        (Light, "gave speaker s00 weights that sum to 0.1, not to 1"),
        (NeedsThree, "NeedsThree among 2 speakers: IndexError: list index out of range"),
        (Crowd, "among 3 speakers: it gave s00 2 peers, but its largest group is 1"),
        (Dice, r"the peers of s00 differ when it is asked a second time: {'s01': 0\.\d+, 's02': 0"),
        (Counting, "the peers of s00 differ when it is asked a second time"),
        (FirstAsked, "differ when speakers are asked and answer in another order"),
        (FirstAnswered, "differ when speakers are asked and answer in another order"),
        (Dividing, "M_s of s00: tensor output.bias has values that are NaN or infinite"),
        (Renaming, "M_s of s00: tensor base.output.bias is not in the model"),
        (Transposing, r"M_s of s00: tensor output.weight has shape \(4, 5\), the model has \(5, 4"),
        (Single, "M_s of s00: tensor output.bias is torch.float32, the model has torch.float64"),
        (Stuttering, "M_s of s00 has tensor output.bias twice"),
        (LayerByLayer, "M_s of s00: tensors are not in the order of names"),
        (InPlace, "it changes what it reads: the personal model of s00, the personal model of s01"),
        (InPlaceTotal, "it changes what it reads: the sum of all models"),
        (InPlaceDistances, "ValueError: .*read-only"),
        (Hoarding, "it had 8 of 8 tensors of the personal model of s01 in memory at once"),
        (Eager, "it read every model to its end before it gave the first tensor: output.bias"),
        (Sharpened, "ZeroDivisionError|alpha = 0: the mix of s00"),
        (Plain, "rule Plain: write `async def peers`"),
        (AsksForStrangers, "the rule asked s00 about an unknown speaker: nobody"),
        (Impatient, "the rule asked for `weights` before its `peers` had answered"),
        (Stranger, "it does not derive from AggregationRule"),
    ],
)
def test_each_broken_promise_is_told(rule, told):
    with pytest.raises(AssertionError, match=told) as caught:
        check_rule(rule)
    assert str(caught.value).startswith(f"{rule.__name__} among ")


def test_settings_that_the_rule_refuses_are_told():
    with pytest.raises(AssertionError, match="ValueError: k has to be a whole number"):
        check_rule(Crowd, k=0)
    with pytest.raises(AssertionError, match=r"TypeError: .*'least'"):
        check_rule(Crowd, least=3)


class TwoPasses(AggregationRule):
    """Reads every model twice, one tensor at a time: first for its norm, then for its values."""

    def combine(self, speaker, view):
        norms = {}
        for peer in sorted(view.weights):
            norms[peer] = sum(float(t.double().square().sum()) for _, t in view.personal(peer))
        total = sum(norms.values())
        for tensors in zip(*map(view.personal, norms), strict=True):
            parts = [n * t for n, (_, t) in zip(norms.values(), tensors, strict=True)]
            yield tensors[0][0], torch.stack(parts).sum(0) / total


class Nobody(AggregationRule):
    async def peers(self, speaker, view):
        return {}


class TwoQuestions(AggregationRule):
    async def peers(self, speaker, view):
        first = await view.word_errors(others(speaker, view)[:1])
        second = await view.word_errors(others(speaker, view))
        return equal_weights(sorted(first | second))


class Races(AggregationRule):
    async def peers(self, speaker, view):
        race = await view.best(others(speaker, view), k=2, confidence=0.9, budget=0.5)
        return equal_weights(race.kept)


@pytest.mark.parametrize("rule", [AggregationRule, TwoPasses, Nobody, TwoQuestions, Races])
def test_rules_that_keep_all_promises_pass(rule):
    check_rule(rule)


def test_two_questions_of_all_speakers_are_two_exchanges():
    federation = DummyFederation(speakers=5)
    federation.peers(TwoQuestions())
    assert federation.exchanges == 2


def test_a_race_is_on_the_errors_of_the_table():
    federation = DummyFederation(speakers=5)
    federation.word_errors |= {("s00", f"s0{i}"): WordErrors(7 * (5 - i), 20) for i in range(1, 5)}
    question = federation.view("s00").best(["s03", "s01", "s04", "s02", "s01"], 2, 0.9, budget=1)
    (race,) = federation.exchange({"s00": question.asked}).values()
    assert set(race.kept) == {"s04", "s03"}
    assert race.exhaustive == 4 * 20
    on_all = {name for name, words in race.words.items() if words == 20}
    assert {name: race.errors[name] for name in on_all} == {
        name: federation.word_errors["s00", name].errors for name in on_all
    }
    assert federation.exchanges == 1


def test_a_dummy_federation_follows_from_its_seed():
    one, same, other = DummyFederation(4, seed=1), DummyFederation(4, seed=1), DummyFederation(4)
    assert one.fingerprint() == same.fingerprint()
    assert not set(one.fingerprint().values()) & set(other.fingerprint().values())
    assert (one.word_errors, one.seconds) == (same.word_errors, same.seconds)
    assert one.speakers == ("s00", "s01", "s02", "s03")


def test_distances_are_euclidean_over_the_named_tensors():
    federation = DummyFederation(speakers=4)
    view = federation.view("s00")
    assert sorted(name for layer in view.layers() for name in layer) == list(federation.generic)
    names = view.layers()[-1]
    distances = view.distances(names)
    assert (distances.dtype, distances.shape) == (np.float64, (4, 4))
    for i, one in enumerate(federation.personal.values()):
        for j, other in enumerate(federation.personal.values()):
            squares = sum(((one[n] - other[n]) ** 2).sum().item() for n in names)
            assert distances[i, j] == pytest.approx(squares**0.5, rel=1e-6)


def test_the_total_is_the_sum_in_float64():
    federation = DummyFederation(speakers=3)
    for name, tensor in federation.view("s00").total():
        arrays = [model[name].numpy().astype(np.float64) for model in federation.personal.values()]
        np.testing.assert_allclose(tensor.numpy(), np.sum(arrays, axis=0), rtol=1e-15, atol=1e-15)
        assert tensor.dtype == torch.float64
