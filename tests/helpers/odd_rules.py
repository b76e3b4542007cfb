"""Aggregation rules that do something special, named as `odd_rules:Class` in experiments."""

import torch

from fedspeech.aggregation import AggregationRule, equal_weights


class Nobody(AggregationRule):
    """No peers: M_s = G."""

    async def peers(self, speaker, view):
        return {}


class Larger(AggregationRule):
    """M_s is the average of all others; its mix takes the larger value, whatever alpha is."""

    def mix(self, personal, base, alpha):
        for (name, left), (_, right) in zip(personal, base, strict=True):
            yield name, torch.maximum(left, right)


class AsksTwice(AggregationRule):
    """Asks about all others, then about half of them again."""

    async def peers(self, speaker, view):
        assert list(view.speakers) == sorted(view.speakers)
        others = [other for other in view.speakers if other != speaker]
        first = await view.word_errors(others)
        again = await view.word_errors(others[:2])
        assert {other: first[other] for other in others[:2]} == dict(again)
        return equal_weights(others[:1])


class AsksAboutTheFirst(AggregationRule):
    """Asks about the first of all others by id."""

    async def peers(self, speaker, view):
        first = [other for other in view.speakers if other != speaker][:1]
        await view.word_errors(first)
        return equal_weights(first)


class AsksAboutNobody(AggregationRule):
    """Asks about a speaker that is not there."""

    async def peers(self, speaker, view):
        await view.word_errors(["zoe"])
        return {}


class AsksAboutTests(AggregationRule):
    """Asks for what only the evaluation may see."""

    async def peers(self, speaker, view):
        await view.word_errors(view.speakers, "test")
        return {}


class Selfish(AggregationRule):
    """Weighs the target itself."""

    async def peers(self, speaker, view):
        return {speaker: 1.0}


class Negative(AggregationRule):
    """Weights of 2 and -1."""

    async def peers(self, speaker, view):
        first, second, *_ = (other for other in view.speakers if other != speaker)
        return {first: 2.0, second: -1.0}


class NotANumber(AggregationRule):
    """A model with NaN in it."""

    def combine(self, speaker, view):
        return ((name, tensor * float("nan")) for name, tensor in view.generic())


class HalfAModel(AggregationRule):
    """A model without its output layer."""

    def combine(self, speaker, view):
        return ((name, t) for name, t in view.generic() if not name.startswith("output"))


class RacesTwice(AggregationRule):
    """Races three of the others, then the first two of them and the last."""

    async def peers(self, speaker, view):
        others = [other for other in view.speakers if other != speaker]
        first = await view.best(others[:3], k=1, budget=0.5)
        again = await view.best([*others[:2], others[-1]], k=1, budget=0.5)
        return equal_weights(sorted({*first.kept, *again.kept}))
