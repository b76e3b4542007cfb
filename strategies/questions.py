"""`query.word_errors`: what rules want to know of the devices, in as few messages as will do."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedspeech import protocol, tensors
from fedspeech.aggregation import BestOf, Race, WordErrors
from fedspeech.population import Population
from fedspeech.racing import uncontested
from strategies.exchange import Exchange
from strategies.outcome import Decodings
from strategies.view import Candidates

CANDIDATES_PER_MESSAGE = 16
BYTES_PER_MESSAGE = 2**28
"""Of candidates that a message carries at most, as many as a simulated worker keeps. So many are in
memory at once: they go out to all speakers before the next ones are read."""
BYTES_TO_A_BOX = 2**26
"""The same where a small box has to hold the message: one candidate of 14 million parameters."""

Answer = Mapping[str, WordErrors] | Race


class Questions:
    """Asks each device about other speakers' models, and nothing twice within a round.

    A message carries `at_most` so many bytes of them, but always one.
    """

    def __init__(
        self,
        population: Population,
        exchange: Exchange,
        seed: int,
        at_most: int = BYTES_PER_MESSAGE,
    ) -> None:
        self._population, self._exchange, self._seed = population, exchange, seed
        self._known: dict[tuple[str, str, str], WordErrors] = {}
        self._hashes: dict[str, str] = {}
        fitting = at_most // tensors.size(dict(population.generic()))
        self._at_once = min(max(fitting, 1), CANDIDATES_PER_MESSAGE)
        self._record = lru_cache(maxsize=self._at_once)(self._read)
        self._decodings = Decodings()

    def forget(self) -> None:
        """The personal models have changed."""
        self._known.clear()
        self._hashes.clear()
        self._record.cache_clear()

    def pairs(self, part: str) -> dict[tuple[str, str], WordErrors]:
        """All that is known of one part: (speaker, candidate) -> word errors."""
        return {(s, c): errors for (s, c, of), errors in self._known.items() if of == part}

    def decodings(self) -> Decodings:
        """What was needed since this was asked last."""
        needed, self._decodings = self._decodings, Decodings()
        return needed

    def ask(
        self, grid: Grid, round: int, questions: Mapping[str, Candidates | BestOf]
    ) -> dict[str, Answer]:
        """One exchange for all, two for races; who drops out is not among the answers."""
        races = {s: asked for s, asked in questions.items() if isinstance(asked, BestOf)}
        others = {s: asked for s, asked in questions.items() if isinstance(asked, Candidates)}
        answers: dict[str, Answer] = {}
        if others:
            answers |= self._judge(grid, round, others)
        if races:
            answers |= self._race(grid, round, races)
        self._record.cache_clear()  # or some candidates would be in memory until the next round
        return answers

    def _judge(
        self, grid: Grid, round: int, questions: Mapping[str, Candidates]
    ) -> dict[str, Mapping[str, WordErrors]]:
        new = {
            speaker: {c for c in asked.speakers if (speaker, c, asked.part) not in self._known}
            for speaker, asked in questions.items()
        }
        said = {speaker: {"part": asked.part} for speaker, asked in questions.items()}
        for speaker, answer in self._answers(grid, round, self._carry(grid, round, new, said)):
            for candidate, errors in answer["errors"].items():
                key = (speaker, candidate, answer["part"])
                self._known[key] = WordErrors(errors, answer["words"])
        answered = {s: asked for s, asked in questions.items() if s in self._exchange.active}
        for speaker, asked in answered.items():
            utterances = self._exchange.active[speaker].utterances
            self._decodings += Decodings(
                len(new[speaker]) * utterances, len(set(asked.speakers)) * utterances
            )
        return {
            speaker: {c: self._known[speaker, c, asked.part] for c in asked.speakers}
            for speaker, asked in answered.items()
        }

    def _race(self, grid: Grid, round: int, questions: Mapping[str, BestOf]) -> dict[str, Race]:
        """Send the candidates, a few at a time, each once; then let the devices end their races.

        The devices race, not the server: what single utterances tell never leaves them, and it is
        two exchanges and not one for each rung.
        """
        utterances = {s: self._exchange.active[s].utterances for s in questions}
        contested = {s: asked for s, asked in questions.items() if len(asked.speakers) > asked.k}
        ended = {
            s: uncontested(asked.speakers, utterances[s])
            for s, asked in questions.items()
            if s not in contested
        }
        new = {s: asked.speakers for s, asked in contested.items()}
        said = {s: self._race_text(round, asked) for s, asked in contested.items()}
        for _ in self._answers(grid, round, self._carry(grid, round, new, said)):
            pass  # nothing is told before a race ends
        for speaker, answer in self._answers(grid, round, self._ends(grid, round, contested)):
            told = {name: answer["race"][name] for name in protocol.Raced.model_fields}
            kept = tuple(told.pop("kept"))
            ended[speaker] = Race(kept=kept, errors=answer["errors"], **told)
        for race in ended.values():
            self._decodings += Decodings(race.decodings, race.exhaustive, int(not race.confident))
        return {s: race for s, race in ended.items() if s in self._exchange.active}

    def _ends(self, grid: Grid, round: int, contested: Mapping[str, BestOf]) -> protocol.Messages:
        """Messages that end the races; candidates are named by the hashes that devices hold."""
        there = sorted(contested.keys() & self._exchange.active)

        def made() -> Iterator[Message]:
            for speaker in there:
                text = self._race_text(round, contested[speaker], ends=True)
                candidates = sorted(contested[speaker].speakers)
                text["candidates"] = {c: self._hashes[c] for c in candidates}
                yield self._message(grid, round, speaker, text)

        return protocol.Messages(made(), len(there))

    def _race_text(self, round: int, asked: BestOf, ends: bool = False) -> dict[str, Any]:
        race = {
            "k": asked.k,
            "confidence": asked.confidence,
            "budget": asked.budget,
            "candidates": len(asked.speakers),
            # Part of a race has to be another question than the same part of another race.
            "among": hashlib.sha256("\n".join(sorted(asked.speakers)).encode()).hexdigest(),
            "seed": self._seed,
            "round": round,
            "ends": ends,
        }
        return {"part": "train", "race": race}

    def _answers(
        self, grid: Grid, round: int, messages: protocol.Messages
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        replies = grid.send_and_receive(messages, timeout=self._exchange.timeout)
        for speaker, content in self._exchange.answers(round, protocol.WORD_ERRORS, replies):
            yield speaker, protocol.text(content)

    def _carry(
        self,
        grid: Grid,
        round: int,
        wanted: Mapping[str, Collection[str]],
        said: Mapping[str, Mapping[str, Any]],
    ) -> protocol.Messages:
        """Messages that carry the candidates which each speaker wants, beside what is said.

        The same few candidates go to all speakers before the next, so that each is read once.
        """
        every = sorted(set().union(*wanted.values()))
        parcels = [
            (speaker, carried)
            for i in range(0, len(every), self._at_once)
            for speaker in sorted(wanted)
            if (carried := _some(every[i : i + self._at_once], wanted[speaker]))
        ]
        made = (self._bring(grid, round, s, carried, said[s]) for s, carried in parcels)
        return protocol.Messages(made, len(parcels))

    def _bring(
        self, grid: Grid, round: int, speaker: str, carried: Sequence[str], said: Mapping[str, Any]
    ) -> Message:
        records = {c: self._record(c) for c in carried}
        text = {**said, "candidates": {c: self._hashes[c] for c in carried}}
        return self._message(grid, round, speaker, text, **records)

    def _message(
        self, grid: Grid, round: int, speaker: str, said: Mapping[str, Any], **records: ArrayRecord
    ) -> Message:
        content = protocol.content(said, **records)
        return self._exchange.message(grid, round, protocol.WORD_ERRORS, speaker, content)

    def _read(self, candidate: str) -> ArrayRecord:
        difference = self._population.difference(candidate)
        self._hashes[candidate] = tensors.sha256(difference)
        data = self._population.diff(candidate)
        return protocol.pack(difference) if data is None else protocol.pack_diffs([data])


def _some(candidates: Sequence[str], wanted: Collection[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate in wanted]
