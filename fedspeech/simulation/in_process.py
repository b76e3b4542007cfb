"""One client after the other in this process: the readable reference."""

import copy
from collections.abc import Iterable, Iterator

import torch
from flwr.app import Context, Message

from fedspeech.config.engine import EngineSettings
from fedspeech.simulation.grid import Nodes, SimulatedGrid, answer, load_app, prepare


class InProcessGrid(SimulatedGrid):
    """Answers a message when its reply is asked for."""

    def __init__(self, app: str, nodes: Nodes, engine: EngineSettings) -> None:
        super().__init__(nodes, engine.cohort_size)
        self.at_once = engine.cohort_size
        self._app = load_app(app)
        self._threads, self._retries = engine.cpus_per_worker, engine.retries
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages to answer; their ids, in the same order."""
        numbered = {self._number(message): message for message in messages}
        self._waiting.update(numbered)
        for number, message in numbered.items():
            if self._goes_with_a_cohort(message):
                self._cohorts.add(message.metadata.dst_node_id, number)
        return list(numbered)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The reply to the first of the messages."""
        for message_id in message_ids:
            message = self._waiting[message_id]
            node = message.metadata.dst_node_id
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            self._prepare_cohort(node)
            reply = self._answer(self._waiting.pop(message_id), self._contexts[node])
            torch.set_num_threads(before)
            return iter([reply])
        return iter([])

    def _answer(self, message: Message, context: Context) -> Message:
        """The reply; one that is an error is asked for again, and leaves nothing in the state."""
        for left in reversed(range(self._retries + 1)):
            state = copy.deepcopy(context.state)
            reply = answer(self._app, message, context)
            if not reply.has_error():
                break
            context.state = state
            if left:
                self._ask_again(reply)
        return reply

    def _prepare_cohort(self, node: int) -> None:
        if self._cohort > 1 and (cohort := self._cohorts.take(node)) is not None:
            there = [(n, self._waiting.get(cohort.messages.get(n, ""))) for n in cohort.nodes]
            prepare([(self._contexts[n], message) for n, message in there])

    def close(self) -> None:
        """Nothing to end."""
