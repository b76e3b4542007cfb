"""Beam search through what a transducer hears, for many utterances at once, chunk by chunk."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fedspeech.decoding.transducer import MOST_PER_STEP
from fedspeech.models.rnnt import BLANK, RNNT
from fedspeech.units import Units

WIDTH = 16


class Text(NamedTuple):
    """What may have been said in an utterance, and log p(text, speech so far)."""

    spelled: tuple[int, ...]
    score: float
    utterance: int
    row: int
    """Where the search keeps what the prediction network says after this text."""


class Beam:
    """The `width` most likely texts of each utterance.

    At each step every text of the beam either waits for the next step, by a blank, or gets one more
    unit, at most `MOST_PER_STEP` times; alignments of the same text are added up. This is
    time-synchronous decoding (Saon, Tüske, Audhkhasi 2020, Alignment-length synchronous decoding
    for RNN transducer, section 2). What is less likely than all that waits already is not followed.

    `agreed` has what all texts of an utterance begin with: none of it changes any more, and no step
    looks at it again.
    """

    @torch.inference_mode()
    def __init__(self, model: RNNT, batch: int, width: int = WIDTH) -> None:
        self._model, self._width = model, width
        self.agreed: list[list[int]] = [[] for _ in range(batch)]
        self._beams = [[Text((), 0.0, number, 0)] for number in range(batch)]
        """Texts without what they agree upon."""
        start = torch.full((1, 1), BLANK, device=model.output.weight.device)
        self._predicted, self._state = model.predict(start)

    @property
    def texts(self) -> list[list[Text]]:
        """The beam of each utterance, the most likely text first."""
        return [
            [text._replace(spelled=(*agreed, *text.spelled)) for text in beam]
            for agreed, beam in zip(self.agreed, self._beams, strict=True)
        ]

    @property
    def spelled(self) -> list[list[int]]:
        """The most likely unit numbers of each utterance."""
        return [
            [*agreed, *beam[0].spelled]
            for agreed, beam in zip(self.agreed, self._beams, strict=True)
        ]

    @torch.inference_mode()
    def accept(self, encoded: torch.Tensor, lengths: torch.Tensor) -> None:
        """Go on with what was heard next, (batch, steps, joint), `lengths` (batch,) of it."""
        counts = lengths.tolist()
        for step in range(max(counts, default=0)):
            there = [number for number, count in enumerate(counts) if step < count]
            self._step(encoded[:, step], there)
            self._forget()
            self._agree(there)

    def _step(self, heard: torch.Tensor, there: Sequence[int]) -> None:
        waiting: dict[int, dict[tuple[int, ...], Text]] = {number: {} for number in there}
        front = [text for number in there for text in self._beams[number]]
        for _ in range(MOST_PER_STEP):
            log_p = self._log_p(heard, front)
            _wait(waiting, front, log_p)
            front = self._spell(waiting, front, log_p)
            if not front:
                break
        else:
            _wait(waiting, front, self._log_p(heard, front))
        for number, texts in waiting.items():
            self._beams[number] = heapq.nlargest(self._width, texts.values(), key=_score)

    def _log_p(self, heard: torch.Tensor, front: Sequence[Text]) -> torch.Tensor:
        """Of the units that may come next, (texts, units)."""
        encoded = heard[[text.utterance for text in front]]
        predicted = self._predicted[[text.row for text in front], 0]
        return self._model.join(encoded, predicted).log_softmax(1)

    def _spell(
        self,
        waiting: dict[int, dict[tuple[int, ...], Text]],
        front: Sequence[Text],
        log_p: torch.Tensor,
    ) -> list[Text]:
        """The best texts with one more unit each, as many as the beam is wide, read by then."""
        best = log_p[:, 1:].topk(min(self._width, log_p.shape[1] - 1))
        longer: dict[int, list[tuple[float, int, Text]]] = {number: [] for number in waiting}
        rows = zip(front, best.values.tolist(), best.indices.tolist(), strict=True)
        for text, scores, units in rows:
            longer[text.utterance] += [
                (text.score + score, unit + 1, text)
                for score, unit in zip(scores, units, strict=True)
            ]
        chosen = [
            each
            for number, some in longer.items()
            for each in heapq.nlargest(self._width, some, key=lambda one: one[0])
            if each[0] > self._bar(waiting[number])
        ]
        return self._read(chosen) if chosen else []

    def _bar(self, waiting: dict[tuple[int, ...], Text]) -> float:
        """What a text has to be above to get into the beam."""
        if len(waiting) < self._width:
            return -np.inf
        return heapq.nlargest(self._width, (text.score for text in waiting.values()))[-1]

    def _read(self, chosen: Sequence[tuple[float, int, Text]]) -> list[Text]:
        """The prediction network goes on from each text with a unit."""
        parents = [text.row for _, _, text in chosen]
        units = torch.tensor([[unit] for _, unit, _ in chosen], device=self._predicted.device)
        before = [(h[:, parents], c[:, parents]) for h, c in self._state]
        predicted, after = self._model.predict(units, before)
        known = len(self._predicted)
        self._predicted = torch.cat([self._predicted, predicted])
        self._state = [
            (torch.cat([h, new_h], 1), torch.cat([c, new_c], 1))
            for (h, c), (new_h, new_c) in zip(self._state, after, strict=True)
        ]
        return [
            Text((*text.spelled, unit), score, text.utterance, known + place)
            for place, (score, unit, text) in enumerate(chosen)
        ]

    def _forget(self) -> None:
        """Keep the prediction network's answers of the texts that are left."""
        rows = [text.row for beam in self._beams for text in beam]
        self._predicted = self._predicted[rows]
        self._state = [(h[:, rows], c[:, rows]) for h, c in self._state]
        places = iter(range(len(rows)))
        self._beams = [[text._replace(row=next(places)) for text in beam] for beam in self._beams]

    def _agree(self, there: Sequence[int]) -> None:
        """Take from the texts of these utterances what all of them begin with by now."""
        for number in there:
            beam = self._beams[number]
            if same := _common([text.spelled for text in beam]):
                self.agreed[number] += same
                self._beams[number] = [
                    text._replace(spelled=text.spelled[len(same) :]) for text in beam
                ]


def decode(
    model: RNNT, encoded: torch.Tensor, lengths: torch.Tensor, units: Units, width: int = WIDTH
) -> list[str]:
    """Texts of a batch: what was heard (batch, steps, joint), lengths (batch,) in steps."""
    search = Beam(model, len(encoded), width)
    search.accept(encoded, lengths)
    return [units.decode(spelled) for spelled in search.spelled]


def _wait(
    waiting: dict[int, dict[tuple[int, ...], Text]], front: Sequence[Text], log_p: torch.Tensor
) -> None:
    """Each text gets a blank; its probability is added to that of its other alignments."""
    for text, blank in zip(front, log_p[:, BLANK].tolist(), strict=True):
        texts, score = waiting[text.utterance], text.score + blank
        if text.spelled in texts:
            score = float(np.logaddexp(score, texts[text.spelled].score))
        texts[text.spelled] = text._replace(score=score)


def _score(text: Text) -> float:
    return text.score


def _common(texts: Sequence[tuple[int, ...]]) -> list[int]:
    """What all of them begin with."""
    same = 0
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return list(texts[0][:same])
