"""An aggregation rule with `peers` only: who spoke more weighs more."""

from collections.abc import Mapping

from fedspeech.aggregation import AggregationRule, FederationView


class BySeconds(AggregationRule):
    """All others that spoke for at least `least` seconds, weighted by their seconds of speech."""

    def __init__(self, least: float = 0.0) -> None:
        if least < 0:
            raise ValueError(f"least has to be at least 0 seconds, found {least}")
        self.least = least

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """Seconds of the peer over the seconds of all peers; nobody spoke enough: M_s = G."""
        seconds = {
            other: view.seconds[other]
            for other in view.speakers
            if other != speaker and view.seconds[other] >= self.least
        }
        total = sum(seconds.values())
        return {other: spoken / total for other, spoken in seconds.items()} if total else {}
