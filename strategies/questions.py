"""`query.word_errors`: what rules want to know of the devices, in as few messages as will do."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.aggregation import WordErrors
from fedspeech.population import Population
from fedspeech.tensors import sha256
from strategies.exchange import Exchange
from strategies.view import Candidates

CANDIDATES_PER_MESSAGE = 16
RECORDS_HELD = 64
"""Candidates' differences that wait in memory for the next message that carries them."""


class Questions:
    """Asks each device about other speakers' models, and nothing twice within a round."""

    def __init__(self, population: Population, exchange: Exchange) -> None:
        self._population, self._exchange = population, exchange
        self._known: dict[tuple[str, str, str], WordErrors] = {}
        self._record = lru_cache(maxsize=RECORDS_HELD)(self._read)

    def forget(self) -> None:
        """The personal models have changed."""
        self._known.clear()
        self._record.cache_clear()

    def pairs(self, part: str) -> dict[tuple[str, str], WordErrors]:
        """All that is known of one part: (speaker, candidate) -> word errors."""
        return {(s, c): errors for (s, c, of), errors in self._known.items() if of == part}

    def ask(
        self, grid: Grid, round: int, questions: Mapping[str, Candidates]
    ) -> dict[str, Mapping[str, WordErrors]]:
        """One exchange for all; a speaker that drops out is not among the answers."""
        messages = self._messages(grid, round, questions)
        replies = grid.send_and_receive(messages, timeout=self._exchange.timeout)
        for speaker, content in self._exchange.answers(round, protocol.WORD_ERRORS, replies):
            said = protocol.text(content)
            for candidate, errors in said["errors"].items():
                key = (speaker, candidate, said["part"])
                self._known[key] = WordErrors(errors, said["words"])
        return {
            speaker: {c: self._known[speaker, c, asked.part] for c in asked.speakers}
            for speaker, asked in questions.items()
            if speaker in self._exchange.active
        }

    def _messages(
        self, grid: Grid, round: int, questions: Mapping[str, Candidates]
    ) -> Iterator[Message]:
        for speaker, asked in sorted(questions.items()):
            new = [c for c in asked.speakers if (speaker, c, asked.part) not in self._known]
            for i in range(0, len(new), CANDIDATES_PER_MESSAGE):
                records = {c: self._record(c) for c in new[i : i + CANDIDATES_PER_MESSAGE]}
                said = {
                    "candidates": {c: name for c, (name, _) in sorted(records.items())},
                    "part": asked.part,
                }
                content = protocol.content(said, **{c: r for c, (_, r) in records.items()})
                yield self._exchange.message(grid, round, protocol.WORD_ERRORS, speaker, content)

    def _read(self, candidate: str) -> tuple[str, ArrayRecord]:
        difference = self._population.difference(candidate)
        return sha256(difference), protocol.pack(difference)
