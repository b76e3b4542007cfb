"""One exchange with many devices: who was asked, who answered, who dropped out and why."""

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.protocol import Member
from strategies.outcome import Failure


class Exchange:
    """Messages to the speakers that are still there.

    A speaker that answers with an error or not at all is left out from then on. Below the quorum
    the run has failed.
    """

    def __init__(self, members: Sequence[Member], quorum: float, failures: list[Failure]) -> None:
        ordered = sorted(members, key=lambda member: member.speaker)
        self.active = {member.speaker: member for member in ordered}
        self._speakers = {member.node: member.speaker for member in ordered}
        self._least = quorum * len(ordered)
        self._failures = failures
        self._asked: set[str] = set()
        self.timeout = 3600.0
        """Seconds without any answer after which those that are still asked drop out."""

    def restore(self, active: Iterable[str], failures: Iterable[Failure]) -> None:
        """Take up what is left of the federation after an earlier round."""
        self.active = {speaker: self.active[speaker] for speaker in active}
        self._failures.extend(failures)

    def message(
        self, grid: Grid, round: int, kind: str, speaker: str, content: RecordDict
    ) -> Message:
        """A message to an active speaker's node."""
        self._asked.add(speaker)
        return grid.create_message(content, kind, self.active[speaker].node, str(round))

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
                self._drop(speaker, round, kind, reason)
            elif speaker in self.active:
                yield speaker, reply.content
        for speaker in sorted(self._asked):
            self._drop(speaker, round, kind, "no answer")
        self._asked = set()
        self._check_quorum(round, kind)

    def _drop(self, speaker: str, round: int, kind: str, reason: str) -> None:
        if self.active.pop(speaker, None) is not None:
            self._failures.append(Failure(speaker, round, kind, reason))

    def _check_quorum(self, round: int, kind: str) -> None:
        if len(self.active) >= max(self._least, 1):
            return
        lost = [f"  {f.speaker}, round {f.round}, {f.message}: {f.reason}" for f in self._failures]
        raise RunError(
            f"round {round}, {kind}: {len(self.active)} of {len(self._speakers)} speakers left, "
            f"expected at least {self._least:g} (federation.quorum)\n" + "\n".join(lost)
        )
