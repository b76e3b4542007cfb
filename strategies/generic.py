"""M_s = G: what every device gets without a federation, and what the others are compared with."""

from collections.abc import Mapping

from fedspeech.aggregation import AggregationRule, FederationView


class Generic(AggregationRule):
    """No peers: the base model of every speaker is the generic model G."""

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """Nobody, so that M_s = G."""
        return {}
