"""Which model makes how many errors on which utterance: what searches for peers are tried on.

Real models: G trained on the first speakers of the synthetic corpus, each other speaker's P_s
fine-tuned from it, and every P_s decoded once on the utterances of the first of them, the targets.
"""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import CORES
from experiments.benchmarks.harness import say
from fedspeech import evaluation, features, seeding, tensors
from fedspeech.config.model import FeatureSettings, PersonalAugmentation, UnitSettings
from fedspeech.config.training import GenericSettings, PersonalSettings
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import Client
from fedspeech.features import Utterance
from fedspeech.models import description
from fedspeech.models.description import ModelDescription
from fedspeech.training.course import Course
from fedspeech.training.loop import Loop
from fedspeech.training.personal import fine_tune
from fedspeech.units import learn

MODEL = "benchmark-tiny"
TOGETHER = 10
"""Models that hear the same prepared utterances."""
SPEECH = "speech.pt"


@dataclass(frozen=True)
class Size:
    """How many speakers train G, and how many have a P_s, of which the first are targets."""

    generic: int
    speakers: int
    targets: int
    utterances: int
    """Of each speaker, to train on."""
    judged: int
    """Of each target, to judge models on; those that it trains on come first."""
    generic_epochs: int = 14
    epochs: int = 8


class Table(NamedTuple):
    """errors[p, s, u] of P_p on utterance u of target s, and its words[s, u] of reference."""

    errors: np.ndarray
    words: np.ndarray


def measure(folder: Path, size: Size, seed: int) -> Table:
    """Train all models and decode all pairs, a process per core."""
    clients = _speak(size.generic + size.speakers, size.utterances, seed)
    targets = _speak(size.generic + size.targets, size.judged, seed)[size.generic :]
    texts = [text_of(cut) for client in clients for cut in client.train]
    about = ModelDescription(MODEL, FeatureSettings(), learn(texts, UnitSettings(kind="words")))
    say(f"training G on {size.generic} speakers")
    _train_generic(folder, about, clients[: size.generic], size, seed)
    say(f"fine-tuning {size.speakers} speakers, decoding each P_s for {size.targets} targets")
    spoken = [_utterances(folder, client, about) for client in clients[size.generic :]]
    judged = [_utterances(folder, client, about) for client in targets]
    torch.save((spoken, judged), folder / SPEECH)
    rows: list[np.ndarray] = []
    some = [range(size.speakers)[i : i + TOGETHER] for i in range(0, size.speakers, TOGETHER)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(CORES, torch.set_num_threads, (1,)) as pool:
        for found in pool.imap(partial(_errors_of, folder, size, seed), some):
            rows.append(found)
            say(f"{sum(map(len, rows))} of {size.speakers} models are decoded")
    words = [[len(utterance.text.split()) for utterance in mine] for mine in judged]
    return Table(np.concatenate(rows), np.array(words))


def _speak(speakers: int, utterances: int, seed: int) -> list[Client]:
    """The same voices and the same first utterances, whatever the numbers."""
    return workload.speak(speakers, utterances, seed, words=(1, 3))


def _train_generic(
    folder: Path, about: ModelDescription, clients: Sequence[Client], size: Size, seed: int
) -> None:
    with seeding.scoped(seed, 0, "", "benchmark model"):
        model = about.empty()
    light = PersonalAugmentation()
    settings = GenericSettings(epochs=size.generic_epochs, precision="fp32", augmentation=light)
    speech = [
        utterance
        for client in clients
        for utterance in _utterances(folder, client, about, settings.augmentation.speeds)
    ]
    course = Course(settings, about.features, about.units, speech, (seed, 0, "", "generic"))
    loop = Loop(model, course)
    for number in range(settings.epochs):
        loss = loop.epoch(number)
    say(f"G: loss {loss:.2f} after {settings.epochs} epochs")
    tensors.write(folder / "generic.safetensors", tensors.state(model))
    about.write(folder / "generic.json")


def _utterances(
    folder: Path, client: Client, about: ModelDescription, speeds: Sequence[float] = ()
) -> list[Utterance]:
    return features.prepare(client.train, about.features, speeds, folder / "features")


def _errors_of(folder: Path, size: Size, seed: int, speakers: Sequence[int]) -> np.ndarray:
    """Fine-tune some P_s; their errors for all targets, int16 (some, targets, utterances)."""
    about = description.read(folder / "generic.json")
    generic = tensors.read(folder / "generic.safetensors")
    spoken: list[list[Utterance]]
    judged: list[list[Utterance]]
    spoken, judged = torch.load(folder / SPEECH, weights_only=False)
    settings = PersonalSettings(epochs=size.epochs, precision="fp32", augmentation=workload.STILL)
    models = [
        fine_tune(generic, about, settings, spoken[s], (seed, 0, str(s), "personalize")).model
        for s in speakers
    ]
    utterances = [utterance for mine in judged for utterance in mine]
    counts = evaluation.word_errors_of(models, about, utterances)
    errors = [each.errors.reshape(len(judged), -1) for each in counts]
    return np.stack(errors).astype(np.int16)
