"""Speech that is still being spoken: samples go in as they come, words come out as they are sure.

Whatever the chunks, the features are those of the whole recording, and so are the words.
"""

from collections.abc import Sequence

import torch

from fedspeech import features
from fedspeech.config.model import FeatureSettings
from fedspeech.decoding.beam import Beam
from fedspeech.decoding.transducer import Greedy
from fedspeech.errors import ModelError
from fedspeech.features import SHIFT, WINDOW, Normalization
from fedspeech.models.description import ModelDescription
from fedspeech.models.rnnt import RNNT, State

MIRRORED = (WINDOW - SHIFT) // 2
"""Samples before the first one that the first window sees: what follows it, mirrored."""


class FeatureStream:
    """Features of a recording as it comes.

    Mean and deviation have to be known beforehand: those of the speaker's train_s. Raises
    ModelError for features that are normalized by the utterance itself.
    """

    def __init__(self, settings: FeatureSettings, normalization: Normalization) -> None:
        if settings.normalization == "utterance":
            raise ModelError(
                "features.normalization = utterance: how an utterance sounds as a whole is not "
                "known while it is spoken, expected a model with speaker"
            )
        self._settings, self._normalization = settings, normalization
        self._matrix = features.transform(settings.kind, settings.dimension)
        self._waiting = torch.zeros(0)
        self._begun = False

    def accept(self, samples: torch.Tensor) -> torch.Tensor:
        """Features (frames, dimension) that float32 samples (n,) at 16 kHz make complete."""
        self._waiting = torch.cat([self._waiting, samples])
        if not self._begun and len(self._waiting) >= WINDOW:
            self._begin()
        return self._complete() if self._begun else self._nothing()

    def finish(self) -> torch.Tensor:
        """The last features: the recording ends here."""
        if not self._begun:
            if not len(self._waiting):
                return self._nothing()
            self._waiting = torch.nn.functional.pad(self._waiting, (0, WINDOW - len(self._waiting)))
            self._begin()
        frames = (len(self._waiting) - MIRRORED + SHIFT // 2) // SHIFT
        missing = (frames - 1) * SHIFT + WINDOW - len(self._waiting)
        if missing > 0:
            self._waiting = torch.cat([self._waiting, self._waiting.flip(0)[:missing]])
        return self._complete()

    def _begin(self) -> None:
        self._waiting = torch.cat([self._waiting[:MIRRORED].flip(0), self._waiting])
        self._begun = True

    def _complete(self) -> torch.Tensor:
        frames = max(0, (len(self._waiting) - WINDOW) // SHIFT + 1)
        if not frames:
            return self._nothing()
        span = (frames - 1) * SHIFT + WINDOW
        energies = features.log_mel_of_windows(self._waiting[:span], self._settings.dimension)
        self._waiting = self._waiting[frames * SHIFT :]
        centred = energies - self._normalization.mean
        return centred @ self._matrix / self._normalization.deviation

    def _nothing(self) -> torch.Tensor:
        return torch.zeros(0, self._settings.dimension)


class Stream:
    """A transducer that listens.

    `width` 1 is greedy search; a wider beam is surer of its words, and says each of them when all
    texts of the beam begin with it. Raises ModelError for a model that has to hear the end first,
    and as `FeatureStream` does.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        description: ModelDescription,
        normalization: Normalization,
        width: int = 1,
    ) -> None:
        if not isinstance(model, RNNT):
            raise ModelError(f"model {description.name} does not stream, expected an RNN-T")
        self._model, self._units = model.eval(), description.units
        self._features = FeatureStream(description.features, normalization)
        self._search = Greedy(model, 1) if width == 1 else Beam(model, 1, width)
        self._waiting = torch.zeros(0, description.features.dimension)
        self._state: State | None = None
        self._spelled = 0
        self._open = ""
        """What was spelled and is not said yet: at most the beginning of a word."""

    def accept(self, samples: torch.Tensor) -> list[str]:
        """Go on with float32 samples (n,) at 16 kHz; the words that are complete by now."""
        self._waiting = torch.cat([self._waiting, self._features.accept(samples)])
        ready = len(self._waiting) // self._model.subsampling * self._model.subsampling
        self._hear(ready)
        self._spell(self._search.agreed[0])
        complete, _, self._open = self._open.rpartition(" ")
        return complete.split()

    def finish(self) -> list[str]:
        """The last words: the recording ends here."""
        self._waiting = torch.cat([self._waiting, self._features.finish()])
        self._hear(len(self._waiting))
        self._spell(self._search.spelled[0])
        last, self._open = self._open.split(), ""
        return last

    @torch.inference_mode()
    def _hear(self, frames: int) -> None:
        if not frames:
            return
        chunk, self._waiting = self._waiting[:frames], self._waiting[frames:]
        place = self._model.output.weight.device
        encoded, self._state = self._model.encode(chunk[None].to(place), self._state)
        self._search.accept(encoded, torch.tensor([encoded.shape[1]], device=place))

    def _spell(self, units: Sequence[int]) -> None:
        """Take up what the text has got since the last time."""
        self._open += self._units.spell(units[self._spelled :])
        self._spelled = len(units)
