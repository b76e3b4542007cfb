"""An aggregation rule with `combine` only: a median, which no weights can express.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, Algorithm 1, option I.
"""

import torch

from fedspeech.aggregation import AggregationRule, FederationView, TensorStream


class CoordinateMedian(AggregationRule):
    """Each value of M_s is the median of that value in the models of all others."""

    def combine(self, speaker: str, view: FederationView) -> TensorStream:
        """One tensor of each model in memory at a time; alone, G."""
        if not view.weights:
            yield from view.generic()
            return
        for tensors in zip(*map(view.personal, sorted(view.weights)), strict=True):
            name = tensors[0][0]
            # Half of the two values in the middle each; of an odd number they are the same one.
            values = torch.stack([tensor for _, tensor in tensors]).sort(dim=0).values
            middle = len(values) - 1
            yield name, (values[middle // 2] + values[(middle + 1) // 2]) / 2
