"""M_s = the average of the k personal models that are closest in a tree of all models.

Mdhaffar, Tommasi, Estève, "Study on acoustic model personalization in a context of collaborative
learning constrained by privacy preservation", SPECOM 2021; there k = 50.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from fedspeech.aggregation import FederationView, GroupRule, equal_weights


class Dendrogram(GroupRule):
    """The k closest by Ward linkage on the Euclidean distances of the first layer's weights."""

    def __init__(self, k: int = 50) -> None:
        super().__init__(k)

    async def peers(self, speaker: str, view: FederationView) -> Mapping[str, float]:
        """Whole clusters from the closest outwards; the last one's share is drawn uniformly."""
        if len(view.speakers) == 1:
            return {}
        tree = linkage(squareform(view.distances(view.layers()[0]), checks=False), method="ward")
        group: list[int] = []
        for cluster in joining(tree, view.speakers.index(speaker)):
            room = self.k - len(group)
            if len(cluster) > room:
                drawn = view.generator("dendrogram").choice(len(cluster), room, replace=False)
                cluster = [cluster[i] for i in sorted(drawn)]
            group += cluster
            if len(group) == self.k:
                break
        return equal_weights([view.speakers[i] for i in group])


def joining(tree: np.ndarray, leaf: int) -> Iterator[list[int]]:
    """The clusters that join the leaf's own one on its way to the root, the closest first.

    `tree` is a linkage matrix of shape (leaves - 1, 4); a cluster is a sorted list of leaves.
    """
    clusters = [[i] for i in range(len(tree) + 1)]
    own = leaf
    for left, right in tree[:, :2].astype(int):
        if own in (left, right):
            yield clusters[right if own == left else left]
            own = len(clusters)
        clusters.append(sorted(clusters[left] + clusters[right]))
