"""What a device is for: speech to text with the owner's model, at once and without a network."""

from pathlib import Path

import torch

from fedspeech import decoding, features, tensors
from fedspeech.accelerator import place
from fedspeech.corpus.cuts import recording, samples
from fedspeech.device import personal, voice
from fedspeech.device.store import DESCRIPTION
from fedspeech.errors import CorpusError, ModelError
from fedspeech.features import Normalization, Utterance
from fedspeech.models import description
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors

MOST_SECONDS = 300.0
"""Of one file: it is recognized in one piece, and takes memory by its length."""


class Recognizer:
    """A model, with what it needs to hear and to spell; `about` says in words which it is."""

    def __init__(
        self,
        model: Tensors,
        description: ModelDescription,
        normalization: Normalization | None = None,
        about: str = "",
    ) -> None:
        self.about = about
        self._description, self._normalization = description, normalization
        self._module = description.module(model).to(place()).eval()

    @torch.inference_mode()
    def transcribe(self, path: Path, channel: int | None = None) -> str:
        """What is said in an audio file, greedily decoded.

        Without a normalization of its speaker an utterance is normalized by itself. Raises
        CorpusError where the file cannot be read or is longer than `MOST_SECONDS`.
        """
        seen = features.batch([self._heard(path, channel)], self._description.features)
        seen = seen.to(place())
        output, lengths = self._module(seen.features, seen.lengths)
        return decoding.decode(self._module, output, lengths, self._description.units)[0]

    def _heard(self, path: Path, channel: int | None) -> Utterance:
        source = recording(path, channel)
        if source.duration > MOST_SECONDS:
            raise CorpusError(
                f"{path}: {source.duration:.0f} s, expected at most {MOST_SECONDS:g} s; cut it"
            )
        settings = self._description.features
        wave = samples(source.to_cut())
        with features.one_thread():
            energies = features.log_mel(wave, settings.dimension)
        normalization = self._normalization
        if normalization is None:
            matrix = features.transform(settings.kind, settings.dimension)
            normalization = features.normalization([energies], matrix)
        return Utterance(str(path), "", "", {1.0: energies}, normalization)


def open_recognizer(path: Path) -> Recognizer:
    """Of a device's folder, or of a safetensors file with its description beside it.

    Raises ModelError where there is no model, no description, or either is damaged.
    """
    about = description_of(path)
    if path.is_file():
        return Recognizer(tensors.read(path), about, about=str(path))
    store = personal.open_store(path)
    model, what = personal.usual(store)
    own = store.folder.resolve().parent
    by_speaker = about.features.normalization == "speaker"
    normalization = voice.normalization(own, about.features) if by_speaker else None
    return Recognizer(model, about, normalization, what)


def description_of(path: Path) -> ModelDescription:
    """Architecture, features and vocabulary of a device's models, or of a model's file.

    They lie beside a file as `NAME.json`, or as `generic.json` in its folder or the one above.
    Raises ModelError where there is none.
    """
    if not path.is_file():
        store = personal.open_store(path)
        return ModelDescription.from_json(store.state().get(DESCRIPTION, {}))
    places = (path.with_suffix(".json"), *(p / "generic.json" for p in path.parents[:2]))
    for each in places:
        if each.exists():
            return description.read(each)
    raise ModelError(f"{path}: no description of the model; expected {places[0]}")
