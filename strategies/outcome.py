"""What a personalization found out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedspeech.aggregation import WordErrors


@dataclass(frozen=True)
class Failure:
    """A speaker that dropped out: in which round, at which message, and why."""

    speaker: str
    round: int
    message: str
    reason: str


@dataclass(frozen=True)
class Pushed:
    """What it took to bring a model to one device: the bytes of the diff (of the whole where there
    is no budget; 0 where it is held), and the share of the change's square that the diff lost.
    `additive` are tensors whose hashed diff fell back to the additive form.
    """

    bytes: int
    lost: float = 0.0
    additive: tuple[str, ...] = ()


def at_budget(base: str, budget: str | None) -> str:
    """What a base is called where its M_s is pushed within one more budget."""
    return base if budget is None else f"{base} at {budget}"


@dataclass(frozen=True)
class Decodings:
    """Utterances of train_s that devices decoded with other speakers' models, for one base.

    `exhaustive` is what judging every candidate on everything needs; `cut` counts the speakers
    whose race the budget decided, where confidence could not.
    """

    used: int = 0
    exhaustive: int = 0
    cut: int = 0

    def __add__(self, other: "Decodings") -> "Decodings":
        return Decodings(
            self.used + other.used, self.exhaustive + other.exhaustive, self.cut + other.cut
        )


@dataclass
class Outcome:
    """Everything that the report is made of; arrays are int64 (utterances,) of test_s."""

    speakers: tuple[str, ...] = ()
    """Those that answered everything, in the order of their ids."""
    words: dict[str, np.ndarray] = field(default_factory=dict)
    """Words of each utterance, by speaker."""
    errors: dict[tuple[str, float], dict[str, np.ndarray]] = field(default_factory=dict)
    """Errors of each utterance, by (base, alpha) and speaker."""
    chosen: dict[str, dict[str, float]] = field(default_factory=dict)
    """The alpha that each device would take, by base and speaker."""
    peers: dict[str, dict[str, Mapping[str, float]]] = field(default_factory=dict)
    """The weights that each rule gave in the last round, by base and speaker."""
    pairs: dict[tuple[str, str], WordErrors] = field(default_factory=dict)
    """(s, s'): word errors of P_s' on train_s, as far as they were decoded."""
    decodings: dict[str, Decodings] = field(default_factory=dict)
    """What the rules had decoded in the last round, by base."""
    distances: dict[str, np.ndarray] = field(default_factory=dict)
    """Distances between personal models, float64 (speakers, speakers), by layer."""
    pushed: dict[tuple[str, float | None], dict[str, Pushed]] = field(default_factory=dict)
    """What M_s took, by (base, the alpha at which the server has mixed) and speaker."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Utterances of train_s that the vocabulary cannot spell, by speaker; they taught nothing."""
    failures: list[Failure] = field(default_factory=list)
