"""Which model makes how many errors on which utterance: what searches for peers are tried on.

Real models: G trained on the first speakers of the synthetic corpus, each other speaker's P_s
fine-tuned from it, and every P_s decoded on every speaker's utterances, once.
"""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import CORES
from experiments.benchmarks.harness import say
from fedspeech import evaluation, features, seeding, tensors
from fedspeech.config import FeatureSettings, GenericSettings, PersonalSettings, UnitSettings
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import Client
from fedspeech.decoding import greedy
from fedspeech.features import Utterance
from fedspeech.models import description
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors
from fedspeech.training.loop import Loop
from fedspeech.training.personal import fine_tune
from fedspeech.units import learn

MODEL = "benchmark-tiny"
BATCH = 256
SPEECH = "speech.pt"


@dataclass(frozen=True)
class Size:
    """Speakers that train G and that have a P_s, utterances of each; epochs of both."""

    generic: int
    speakers: int
    utterances: int
    generic_epochs: int = 20
    epochs: int = 8


class Table(NamedTuple):
    """errors[p, s, u] of P_p on utterance u of speaker s, and its words[s, u] of reference."""

    errors: np.ndarray
    words: np.ndarray


class Held(NamedTuple):
    """What a process has to know: G, and everybody's utterances with features, once."""

    generic: Tensors
    about: ModelDescription
    speech: list[list[Utterance]]
    batches: list[tuple[list[tuple[int, int]], features.Batch]]


def measure(folder: Path, size: Size, seed: int) -> Table:
    """Train all models and decode all pairs, a process per core."""
    clients = workload.speak(size.generic + size.speakers, size.utterances, seed, words=(1, 3))
    say(f"training G on {size.generic} speakers")
    about = _train_generic(folder, clients[: size.generic], size, seed)
    say(f"fine-tuning {size.speakers} speakers, decoding {size.speakers}² pairs")
    speech = [_utterances(folder, client, about) for client in clients[size.generic :]]
    torch.save(speech, folder / SPEECH)
    rows = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(CORES, torch.set_num_threads, (1,)) as pool:
        one = partial(_errors_of, folder, size, seed)
        for number, row in enumerate(pool.imap(one, range(size.speakers)), 1):
            rows.append(row)
            if number % 50 == 0:
                say(f"{number} of {size.speakers} models decoded")
    words = [[len(utterance.text.split()) for utterance in mine] for mine in speech]
    return Table(np.stack(rows), np.array(words))


def _train_generic(
    folder: Path, clients: Sequence[Client], size: Size, seed: int
) -> ModelDescription:
    texts = [text_of(cut) for client in clients for cut in client.train]
    about = ModelDescription(MODEL, FeatureSettings(), learn(texts, UnitSettings(kind="words")))
    with seeding.scoped(seed, 0, "", "benchmark model"):
        model = about.empty()
    settings = GenericSettings(epochs=size.generic_epochs, precision="fp32")
    speech = [
        utterance
        for client in clients
        for utterance in _utterances(folder, client, about, settings.augmentation.speeds)
    ]
    loop = Loop(model, settings, about.features, about.units, speech, (seed, 0, "", "generic"))
    for number in range(settings.epochs):
        loss = loop.epoch(number)
    say(f"G: loss {loss:.2f} after {settings.epochs} epochs")
    tensors.write(folder / "generic.safetensors", tensors.state(model))
    about.write(folder / "generic.json")
    return about


def _utterances(
    folder: Path, client: Client, about: ModelDescription, speeds: Sequence[float] = ()
) -> list[Utterance]:
    return features.prepare(client.train, about.features, speeds, folder / "features")


@lru_cache(maxsize=1)
def _held(folder: Path) -> Held:
    """Everybody's utterances in batches of about the same length."""
    about = description.read(folder / "generic.json")
    speech: list[list[Utterance]] = torch.load(folder / SPEECH, weights_only=False)
    places = [(s, u) for s, mine in enumerate(speech) for u in range(len(mine))]
    places.sort(key=lambda place: len(speech[place[0]][place[1]].log_mel[1.0]))
    groups = [places[i : i + BATCH] for i in range(0, len(places), BATCH)]
    batches = [
        (group, features.batch([speech[s][u] for s, u in group], about.features))
        for group in groups
    ]
    return Held(tensors.read(folder / "generic.safetensors"), about, speech, batches)


def _errors_of(folder: Path, size: Size, seed: int, speaker: int) -> np.ndarray:
    """Fine-tune one P_s; its errors on everybody's utterances, int16 (speakers, utterances)."""
    held = _held(folder)
    settings = PersonalSettings(epochs=size.epochs, precision="fp32", augmentation=workload.STILL)
    name = (seed, 0, str(speaker), "personalize")
    tuned = fine_tune(held.generic, held.about, settings, held.speech[speaker], name)
    module = held.about.module(tuned.model).eval()
    errors = np.zeros((len(held.speech), len(held.speech[0])), dtype=np.int16)
    with torch.inference_mode():
        for group, batch in held.batches:
            logits, lengths = module(batch.features, batch.lengths)
            texts = greedy.decode(logits, lengths, held.about.units)
            for (s, u), text in zip(group, texts, strict=True):
                errors[s, u] = _count(held.speech[s][u].text, text)
    return errors


@lru_cache(maxsize=2**20)
def _count(reference: str, hypothesis: str) -> int:
    return int(evaluation.count([reference], [hypothesis]).errors[0])
