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
    """Messages that wait until their cohort is fine-tuned."""

    def __init__(self, size: int, nodes: Sequence[int]) -> None:
        starts = range(0, len(nodes), size)
        self._cohorts = [Cohort(nodes[start : start + size]) for start in starts]
        self._of = {node: cohort for cohort in self._cohorts for node in cohort.nodes}

    def add(self, node: int, number: str) -> None:
        """A message to a node has come."""
        self._of[node].messages[node] = number

    def first(self, whole: bool) -> Cohort | None:
        """The first cohort with messages, taken out; if `whole`, with one for each of its nodes."""
        for cohort in self._cohorts:
            if len(cohort.messages) >= (len(cohort.nodes) if whole else 1):
                return self.take(cohort.nodes[0])
        return None

    def take(self, node: int) -> Cohort | None:
        """The cohort of a node with the messages that wait in it, taken out, or None."""
        cohort = self._of[node]
        if not cohort.messages:
            return None
        taken = Cohort(cohort.nodes, cohort.messages)
        cohort.messages = {}
        return taken
