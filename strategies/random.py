"""M_s = the average of k personal models drawn at random: what the choice of peers is worth.

Mdhaffar, Tommasi, Estève, "Study on acoustic model personalization in a context of collaborative
learning constrained by privacy preservation", SPECOM 2021; there k = 50.
"""

from collections.abc import Mapping

from fedspeech.aggregation import FederationView, GroupRule, equal_weights


class Random(GroupRule):
    """k others, drawn uniformly without repetition."""

    def __init__(self, k: int = 50) -> None:
        super().__init__(k)

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """The same weight for each of those drawn."""
        others = [other for other in view.speakers if other != speaker]
        size = min(self.k, len(others))
        drawn = view.generator("random").choice(len(others), size, replace=False)
        return equal_weights([others[i] for i in sorted(drawn)])
