"""Which speakers are fine-tuned as one stack: it follows from their ids and the configured size.

Timing, faults and interruptions change nothing in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Cohort:
    """Some nodes, in the order of their speakers' ids, and the messages that came for them."""

    nodes: Sequence[int]
    messages: dict[int, str] = field(default_factory=dict)
    """Node -> number of its message."""


class Cohorts:
    """Messages that wait until their cohort is fine-tuned.

    Messages come in the order of the nodes: once one has come for a later cohort, nothing is
    missing of an earlier one but nodes that are not asked.
    """

    def __init__(self, size: int, nodes: Sequence[int]) -> None:
        starts = range(0, len(nodes), size)
        self._cohorts = [Cohort(nodes[start : start + size]) for start in starts]
        self._of = {node: i for i, cohort in enumerate(self._cohorts) for node in cohort.nodes}
        self._latest = 0

    def add(self, node: int, number: str) -> None:
        """A message to a node has come."""
        index = self._of[node]
        waiting = any(cohort.messages for cohort in self._cohorts)
        self._latest = max(self._latest, index) if waiting else index
        self._cohorts[index].messages[node] = number

    def first(self, whole: bool) -> Cohort | None:
        """The first cohort with messages, taken out; if `whole`, one that no more will come for."""
        for index, cohort in enumerate(self._cohorts):
            came = len(cohort.messages) == len(cohort.nodes) or index < self._latest
            if cohort.messages and (came or not whole):
                return self.take(cohort.nodes[0])
        return None

    def take(self, node: int) -> Cohort | None:
        """The cohort of a node with the messages that wait in it, taken out, or None."""
        cohort = self._cohorts[self._of[node]]
        if not cohort.messages:
            return None
        taken = Cohort(cohort.nodes, cohort.messages)
        cohort.messages = {}
        return taken
