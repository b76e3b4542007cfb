"""Greedy search through what a transducer hears, for many utterances at once, chunk by chunk."""

import torch

from fedspeech.models.rnnt import BLANK, RNNT
from fedspeech.units import Units

MOST_PER_STEP = 10
"""Units that may be spelled in one step; a model that is not trained would spell for ever."""


class Greedy:
    """At every step the most likely unit, until it is the blank (Graves 2012, section 2.4).

    `spelled` has the unit numbers of each utterance so far; none of them changes any more.
    """

    @torch.inference_mode()
    def __init__(self, model: RNNT, batch: int) -> None:
        self.spelled: list[list[int]] = [[] for _ in range(batch)]
        self._model = model
        start = torch.full((batch, 1), BLANK, device=model.output.weight.device)
        self._predicted, self._state = model.predict(start)

    @property
    def agreed(self) -> list[list[int]]:
        """All of `spelled`, as nothing of it changes any more; not a copy."""
        return self.spelled

    @torch.inference_mode()
    def accept(self, encoded: torch.Tensor, lengths: torch.Tensor) -> None:
        """Go on with what was heard next, (batch, steps, joint), `lengths` (batch,) of it."""
        for step in range(int(lengths.max()) if len(lengths) else 0):
            there = (step < lengths).nonzero()[:, 0]
            for _ in range(MOST_PER_STEP):
                logits = self._model.join(encoded[there, step], self._predicted[there, 0])
                best = logits.argmax(1)
                there, best = there[best != BLANK], best[best != BLANK]
                if not len(there):
                    break
                self._spell(there, best)

    def _spell(self, there: torch.Tensor, units: torch.Tensor) -> None:
        """Some utterances get one more unit each."""
        for row, unit in zip(there.tolist(), units.tolist(), strict=True):
            self.spelled[row].append(unit)
        before = [(h[:, there], c[:, there]) for h, c in self._state]
        predicted, after = self._model.predict(units[:, None], before)
        self._predicted[there] = predicted
        for mine, moved in zip(self._state, after, strict=True):
            for tensor, rows in zip(mine, moved, strict=True):
                tensor[:, there] = rows


def decode(
    model: torch.nn.Module, encoded: torch.Tensor, lengths: torch.Tensor, units: Units
) -> list[str]:
    """Texts of a batch: what was heard (batch, steps, joint), lengths (batch,) in steps."""
    assert isinstance(model, RNNT)
    search = Greedy(model, len(encoded))
    search.accept(encoded, lengths)
    return [units.decode(spelled) for spelled in search.spelled]
