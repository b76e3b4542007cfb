"""How the epochs of a training went, from what its learners report."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from fedspeech.training.parallel import mixing
from fedspeech.training.parallel.learner import Report

SUMS = ("utterances", "updates", "bytes")
DIGITS = 4


class Epochs:
    """Reports by epoch, until all learners have told of it."""

    def __init__(self, told: Sequence[Mapping[str, Any]] = ()) -> None:
        self.told = [dict(each) for each in told]
        self._open: dict[int, dict[int, Report]] = {}
        self._underway: dict[int, Report] = {}
        self._latest: dict[int, int] = {}
        self._beside: Counter[int] = Counter()

    def take(self, report: Report) -> None:
        """One more report, of an epoch that is over."""
        self._underway.pop(report.learner, None)
        found = self._open.setdefault(report.epoch, {})
        # Who takes the place of a dead learner may come to an epoch that this one has told of.
        if before := found.get(report.learner):
            report = replace(report, measured=before.measured.and_(report.measured))
        found[report.learner] = report
        self._latest[report.learner] = report.epoch

    def comes_on(self, report: Report, learners: Sequence[int], seconds: float) -> dict[str, Any]:
        """What these learners have measured in so many seconds since their last epochs were over,
        with one more report of one that is not.
        """
        self._underway[report.learner] = report
        return _summary([self._underway[n] for n in learners if n in self._underway], seconds)

    def join(self, learner: int, beside: int) -> None:
        """A learner goes on with what another one has, who is as far as it has reported."""
        self._latest.pop(learner, None)
        if beside in self._latest:
            self._latest[learner] = self._latest[beside]

    def add_bytes(self, epoch: int, sent: int) -> None:
        """What was sent in an epoch by who does not learn; the epoch may be told of already."""
        if epoch < len(self.told):
            self.told[epoch]["bytes"] += sent
        else:
            self._beside[epoch] += sent

    def close(self, learners: Sequence[int], seconds: float) -> dict[str, Any] | None:
        """The next epoch, if these learners are all beyond it; it took so many seconds."""
        number = len(self.told)
        behind = any(self._latest.get(learner, -1) < number for learner in learners)
        if behind or number not in self._open:
            return None
        found = self._open.pop(number)
        self.told.append(_summary([found[learner] for learner in sorted(found)], seconds))
        self.told[-1]["bytes"] += self._beside.pop(number, 0)
        return self.told[-1]

    @property
    def losses(self) -> list[float]:
        """The mean loss of each epoch, in nats per utterance."""
        return [each["loss"] for each in self.told]


def _summary(reports: Sequence[Report], seconds: float) -> dict[str, Any]:
    measured = [report.measured for report in reports]
    sums = {name: sum(asdict(each)[name] for each in measured) for name in SUMS}
    updates = max(1, sums["updates"])
    return {
        "loss": sum(each.loss for each in measured) / max(1, sums["utterances"]),
        "seconds": round(seconds, DIGITS),
        **sums,
        "computing": [round(each.computing, DIGITS) for each in measured],
        "waiting": [round(each.waiting, DIGITS) for each in measured],
        "staleness": round(sum(each.staleness for each in measured) / updates, DIGITS),
        "most_stale": max(each.most_stale for each in measured),
        "gap": _gap(reports),
        "consensus": _consensus(reports),
    }


def _gap(reports: Sequence[Report]) -> float | None:
    """Root mean square, over all steps in which they met, of the distance of two models.

    0 where the method leaves them alike; None where they are not, and none have met.
    """
    met = sum(report.measured.met for report in reports)
    if not met and any(report.parameters is not None for report in reports):
        return None
    return round(math.sqrt(sum(report.measured.square for report in reports) / max(1, met)), 6)


def _consensus(reports: Sequence[Report]) -> float:
    """How far the learners' parameters are from their average, each when its epoch ends.

    0 where the method leaves them alike.
    """
    vectors = [report.parameters.numpy() for report in reports if report.parameters is not None]
    if len(vectors) < 2:
        return 0.0
    return round(mixing.consensus_distance(vectors), 6)


def said(epoch: Mapping[str, Any]) -> str:
    """A word on how an epoch went."""
    return f"{so_far(epoch)}, consensus {epoch['consensus']:.2g}"


def so_far(epoch: Mapping[str, Any]) -> str:
    """A word on how one comes on: nobody knows how far models are apart before it is over."""
    computing, waiting = sum(epoch["computing"]), sum(epoch["waiting"])
    pace = epoch["utterances"] / epoch["seconds"] if epoch["seconds"] else 0.0
    gap = "none met" if epoch["gap"] is None else f"gap {epoch['gap']:.2g}"
    return (
        f"loss {epoch['loss']:.3f}, {pace:.0f} utterances/s, {computing:.1f} s computing, "
        f"{waiting:.1f} s waiting, {epoch['bytes'] / 1e6:.1f} MB, "
        f"staleness {epoch['staleness']:.2g}, {gap}"
    )
