"""M_s = the average of the k personal models that recognize speaker s best.

Mdhaffar, Tommasi, Estève, "Study on acoustic model personalization in a context of collaborative
learning constrained by privacy preservation", SPECOM 2021; there k = 10.
"""

from collections.abc import Mapping

from fedspeech.aggregation import FederationView, GroupRule, equal_weights


class KBest(GroupRule):
    """The k others whose models have the lowest WER on `train_s`, measured on that device."""

    def __init__(self, k: int = 10) -> None:
        super().__init__(k)

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """The same weight for each of the k; of equal WER, those first by id."""
        others = [other for other in view.speakers if other != speaker]
        if not others:
            return {}
        errors = await view.word_errors(others, "train")
        ranked = sorted(others, key=lambda other: (errors[other].rate, other))
        return equal_weights(ranked[: self.k])
