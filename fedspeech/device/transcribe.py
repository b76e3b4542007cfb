"""What a device is for: speech to text with the owner's model, at once and without a network."""

from collections.abc import Iterator
from pathlib import Path

import torch

from fedspeech import decoding, features, tensors
from fedspeech.accelerator import place
from fedspeech.corpus.cuts import SAMPLE_RATE, recording, samples
from fedspeech.decoding.streaming import Stream
from fedspeech.device import personal, voice
from fedspeech.errors import CorpusError, ModelError
from fedspeech.features import Normalization, Utterance
from fedspeech.models import description
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors

MOST_SECONDS = 300.0
"""Of one file: it is read in one piece, and takes memory by its length."""
CHUNK = SAMPLE_RATE // 10
"""Samples that a stream hears at a time."""


class Recognizer:
    """A model, with what it needs to hear and to spell; `about` says in words which it is."""

    def __init__(
        self,
        model: Tensors,
        description: ModelDescription,
        normalization: Normalization | None = None,
        about: str = "",
        beam: int = 1,
    ) -> None:
        """A `beam` of 1 is greedy search; more is for an RNN-T."""
        self.about = about
        self._description, self._normalization = description, normalization
        self._module = description.module(model).to(place()).eval()
        self._beam = beam

    @torch.inference_mode()
    def transcribe(self, path: Path, channel: int | None = None) -> str:
        """What is said in an audio file.

        Without a normalization of its speaker an utterance is normalized by itself. Raises
        CorpusError where the file cannot be read or is longer than `MOST_SECONDS`, ModelError for a
        beam with anything but an RNN-T.
        """
        seen = features.batch([self._heard(path, channel)], self._description.features)
        seen = seen.to(place())
        output, lengths = self._module(seen.features, seen.lengths)
        return decoding.decode(self._module, output, lengths, self._description.units, self._beam)[
            0
        ]

    def stream(self, path: Path, channel: int | None = None) -> Iterator[str]:
        """The words of an audio file, each as soon as it is sure.

        Without a normalization of its speaker that of the file is measured before it begins. Raises
        CorpusError as `transcribe` does, and ModelError for a model that does not stream.
        """
        wave = _samples(path, channel)
        normalization = self._normalization or self._measured(self._energies(wave))
        stream = Stream(self._module, self._description, normalization, self._beam)
        return _words(stream, wave)

    def _heard(self, path: Path, channel: int | None) -> Utterance:
        energies = self._energies(_samples(path, channel))
        normalization = self._normalization or self._measured(energies)
        return Utterance(str(path), "", "", {1.0: energies}, normalization)

    def _energies(self, wave: torch.Tensor) -> torch.Tensor:
        with features.one_thread():
            return features.log_mel(wave, self._description.features.dimension)

    def _measured(self, energies: torch.Tensor) -> Normalization:
        settings = self._description.features
        return features.normalization(
            [energies], features.transform(settings.kind, settings.dimension)
        )


def _samples(path: Path, channel: int | None) -> torch.Tensor:
    source = recording(path, channel)
    if source.duration > MOST_SECONDS:
        raise CorpusError(
            f"{path}: {source.duration:.0f} s, expected at most {MOST_SECONDS:g} s; cut it"
        )
    return samples(source.to_cut())


def _words(stream: Stream, wave: torch.Tensor) -> Iterator[str]:
    for chunk in torch.split(wave, CHUNK):
        yield from stream.accept(chunk)
    yield from stream.finish()


def open_recognizer(path: Path, beam: int = 1) -> Recognizer:
    """Of a device's folder, or of a safetensors file with its description beside it.

    Raises ModelError where there is no model, no description, or either is damaged.
    """
    if path.is_file():
        return Recognizer(tensors.read(path), description_of(path), about=str(path), beam=beam)
    store = personal.open_store(path)
    found = personal.usual(store)
    about = ModelDescription.from_json(found.description)
    own = store.folder.resolve().parent
    normalization = found.normalization or voice.of_owner(own, about.features)
    return Recognizer(found.model, about, normalization, found.about, beam)


def description_of(path: Path) -> ModelDescription:
    """Architecture, features and vocabulary of what a device's owner is recognized with, or of a
    model's file.

    They lie beside a file as `NAME.json`, or as `generic.json` in its folder or the one above.
    Raises ModelError where there is none.
    """
    if not path.is_file():
        return ModelDescription.from_json(personal.usual(personal.open_store(path)).description)
    places = (path.with_suffix(".json"), *(p / "generic.json" for p in path.parents[:2]))
    for each in places:
        if each.exists():
            return description.read(each)
    raise ModelError(f"{path}: no description of the model; expected {places[0]}")
