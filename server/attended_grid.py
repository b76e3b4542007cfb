"""A Grid that shows a Flower strategy the nodes that take part in a round, and no others."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedspeech import protocol
from fedspeech.errors import RunError
from fedspeech.participation import Round
from server.journal import Journal
from server.wrapped_grid import WrappedGrid
from strategies.outcome import Failure


class AttendedGrid(WrappedGrid):
    """The rounds of a plan around another grid.

    The first exchange of a round is its training. Until then the nodes are those that are asked,
    afterwards those that were done by the deadline: only these are evaluated on. What comes too
    late has been sent all the same, so it is in the ledger; the strategy does not see it.
    `failures` are the speakers that did not answer well, which it does not see either.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        plan: Sequence[Round],
        quorum: float,
        journal: Journal,
    ) -> None:
        super().__init__(grid)
        self._nodes, self._plan, self._quorum, self._journal = nodes, plan, quorum, journal
        self._round, self._trained = plan[0], False
        self._speakers = {node: speaker for speaker, node in nodes.items()}
        self.failures: list[Failure] = []

    def follow(self, strategy: Strategy) -> None:
        """Hear from the strategy which round it is in."""
        configure = strategy.configure_train

        def configure_train(
            server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            self._round, self._trained = self._plan[server_round - 1], False
            return configure(server_round, arrays, config, grid)

        strategy.configure_train = configure_train  # type: ignore[method-assign]

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of the round that are there, in the order of their speakers' ids."""
        there = self._round.in_time if self._trained else self._round.asked
        return [self._nodes[speaker] for speaker in there if speaker in self._nodes]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies of the nodes that are done in time.

        Raises RunError where fewer of those asked to train have answered well than the quorum.
        """
        sent = protocol.Messages(self._numbered(messages), length_hint(messages))
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        self._note(replies)
        in_time = {self._nodes.get(speaker) for speaker in self._round.in_time}
        taken = [reply for reply in replies if reply.metadata.src_node_id in in_time]
        if not self._trained:
            self._trained = True
            missing = sum(speaker not in self._nodes for speaker in self._round.asked)
            self._check_quorum(taken, len(replies) + missing)
        self._go_on_without(reply for reply in replies if reply.has_error())
        return iter(taken)

    def _go_on_without(self, failed: Iterable[Message]) -> None:
        """A run that is resumed must not ask them again: G would become another one."""
        errors: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
        for reply in failed:
            speaker, error = self._speakers[reply.metadata.src_node_id], reply.error
            errors[reply.metadata.message_type][speaker] = (error.code, error.reason or "")
        for kind, of in errors.items():
            self._journal.give_up(self._round.number, kind, of)

    def _numbered(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Flower's strategies leave it open which round a message is of."""
        for message in messages:
            message.metadata.group_id = str(self._round.number)
            yield message

    def _note(self, replies: Sequence[Message]) -> None:
        for reply in replies:
            if (why := protocol.failure(reply)) is not None:
                speaker = self._speakers[reply.metadata.src_node_id]
                kind = reply.metadata.message_type
                self.failures.append(Failure(speaker, self._round.number, kind, why))

    def _check_quorum(self, replies: Sequence[Message], of: int) -> None:
        reasons = [why for reply in replies if (why := protocol.failure(reply)) is not None]
        there = len(replies) - len(reasons)
        if there >= (least := max(self._quorum * of, 1)):
            return
        raise RunError(
            f"federation.improve, round {self._round.number}: {there} of {of} speakers that were "
            f"asked answered in time, expected at least {least:g} (federation.quorum)"
            + "".join(f"\n  {why}" for why in reasons)
        )
