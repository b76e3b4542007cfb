"""One exchange with many devices: who was asked, who answered, who dropped out and why."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.protocol import Member, Messages
from strategies.outcome import Failure

log = logging.getLogger("fedspeech")


class Exchange:
    """Messages to the speakers that take part and are still there; at first to nobody.

    A speaker that answers with an error or not at all is left out from then on; where devices are
    `returning`, until it is admitted once more. Below the quorum of those that have taken part the
    run has failed.
    """

    def __init__(
        self,
        members: Sequence[Member],
        quorum: float,
        failures: list[Failure],
        returning: bool = False,
    ) -> None:
        ordered = sorted(members, key=lambda member: member.speaker)
        self.active: dict[str, Member] = {}
        self._members = {member.speaker: member for member in ordered}
        self._speakers = {member.node: member.speaker for member in ordered}
        self._quorum, self._returning = quorum, returning
        self._failures = failures
        self._asked: set[str] = set()
        self.timeout = 3600.0
        """Seconds without any answer after which those that are still asked drop out."""

    def admit(self, speakers: Iterable[str]) -> None:
        """Let speakers take part from now on; who has dropped out stays out, or returns."""
        here = {*self.active, *speakers} - (set() if self._returning else self._dropped())
        self.active = {s: member for s, member in self._members.items() if s in here}

    def _dropped(self) -> set[str]:
        """Those that took part; the failures also tell of boxes that never did."""
        return {failure.speaker for failure in self._failures} & self._members.keys()

    def restore(self, active: Iterable[str], failures: Iterable[Failure]) -> None:
        """Take up what is left of the federation after an earlier round."""
        known = {failure.speaker for failure in self._failures}
        self._failures.extend(failure for failure in failures if failure.speaker not in known)
        self.active = {}
        self.admit(active)

    def message(
        self, grid: Grid, round: int, kind: str, speaker: str, content: RecordDict
    ) -> Message:
        """A message to an active speaker's node."""
        self._asked.add(speaker)
        return grid.create_message(content, kind, self.active[speaker].node, str(round))

    def replies(
        self, grid: Grid, messages: Iterable[Message], anew: Callable[[list[str]], Messages]
    ) -> Iterator[Message]:
        """What devices answer. Boxes that lack the model which they were to go on from, since
        another run has used them or an answer of theirs came too late, are asked `anew`.
        """
        lacking = []
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            if self._returning and protocol.lacks(reply):
                lacking.append(self._speakers[reply.metadata.src_node_id])
            else:
                yield reply
        if lacking:
            log.warning("speakers %s lack what they went on from: from G on", ", ".join(lacking))
            yield from grid.send_and_receive(anew(lacking), timeout=self.timeout)

    def answers(
        self, round: int, kind: str, replies: Iterable[Message]
    ) -> Iterator[tuple[str, RecordDict]]:
        """Speaker and content of each good reply, as they come.

        Read it to its end: then those that did not answer drop out, and RunError is raised where
        fewer than the quorum are left.
        """
        for reply in replies:
            speaker = self._speakers[reply.metadata.src_node_id]
            self._asked.discard(speaker)
            if (reason := protocol.failure(reply)) is not None:
                self.drop(speaker, round, kind, reason)
            elif speaker in self.active:
                yield speaker, reply.content
        for speaker in sorted(self._asked):
            self.drop(speaker, round, kind, "no answer")
        self._asked = set()
        self.check_quorum(round, kind, len(self.active), len({*self.active, *self._dropped()}))

    def drop(self, speaker: str, round: int, kind: str, reason: str) -> None:
        """Leave a speaker out from now on."""
        if self.active.pop(speaker, None) is not None:
            self._failures.append(Failure(speaker, round, kind, reason))

    def check_quorum(self, round: int, kind: str, there: int, of: int, what: str = "left") -> None:
        """Raise RunError, with the reasons, where too few of so many speakers are left."""
        if there >= (least := max(self._quorum * of, 1)):
            return
        lost = [f"  {f.speaker}, round {f.round}, {f.message}: {f.reason}" for f in self._failures]
        raise RunError(
            f"round {round}, {kind}: {there} of {of} speakers {what}, "
            f"expected at least {least:g} (federation.quorum)\n" + "\n".join(lost)
        )
