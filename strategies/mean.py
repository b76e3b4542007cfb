"""M_s = the average of the personal models of all other speakers.

Mdhaffar, Tommasi, Estève, "Study on acoustic model personalization in a context of collaborative
learning constrained by privacy preservation", SPECOM 2021: the average over all s' other than s.
"""

from fedspeech.aggregation import AggregationRule, FederationView, TensorStream, weighted_sum


class Mean(AggregationRule):
    """The average of all others, in a time that does not grow with the number of speakers.

    `peers` is the inherited one: all others weigh the same.
    """

    def combine(self, speaker: str, view: FederationView) -> TensorStream:
        """(sum of all P - P_s) / (n - 1) in float64, given in the model's dtype; alone, G.

        The sum is shared by all speakers, so that n of these averages read 2n models, not n².
        """
        others = len(view.speakers) - 1
        if others == 0:
            return view.generic()
        return weighted_sum([view.personal(speaker), view.total()], [-1 / others, 1 / others])
