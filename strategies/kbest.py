"""M_s = the average of the k personal models that recognize speaker s best.

Mdhaffar, Tommasi, Estève, "Study on acoustic model personalization in a context of collaborative
learning constrained by privacy preservation", SPECOM 2021; there k = 10, and n² decodings of all of
train_s are called unrealistic. `search = "racing"` needs the share `budget` of them.
"""

from collections.abc import Mapping, Sequence

from fedspeech.aggregation import FederationView, GroupRule, check_race, equal_weights

SEARCHES = ("exhaustive", "racing")


class KBest(GroupRule):
    """The k others whose models have the lowest WER on `train_s`, measured on that device."""

    def __init__(
        self,
        k: int = 10,
        search: str = "exhaustive",
        confidence: float = 0.95,
        budget: float = 0.15,
    ) -> None:
        super().__init__(k)
        if search not in SEARCHES:
            raise ValueError(f"search has to be one of {', '.join(SEARCHES)}, found {search!r}")
        check_race(k, confidence, budget)
        self.search, self.confidence, self.budget = search, confidence, budget

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """The same weight for each of the k; of equal WER, those first by id."""
        others = [other for other in view.speakers if other != speaker]
        if not others:
            return {}
        return equal_weights(await self._best(others, view))

    async def _best(self, others: Sequence[str], view: FederationView) -> Sequence[str]:
        if self.search == "racing":
            return (await view.best(others, self.k, self.confidence, self.budget)).kept
        errors = await view.word_errors(others, "train")
        ranked = sorted(others, key=lambda other: (errors[other].rate, other))
        return ranked[: self.k]
