"""The same speech and the same models for everyone who is measured.

A folder with one device per speaker (as a run of ours lays it out, its features computed), the
same features as plain tensors for everybody else, and G at each size. Nothing varies the speech:
Flower's quickstart and Apple's pfl do not either.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clients.speaker import Speaker
from fedspeech import features, seeding, tensors
from fedspeech.config.corpus import CorpusSettings, SyntheticSettings, TrainPart
from fedspeech.config.model import FeatureSettings, PersonalAugmentation, UnitSettings
from fedspeech.config.training import PersonalSettings
from fedspeech.corpus import partition, synthetic
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import Client
from fedspeech.models import MODELS, PAPER_LAYERS, SMALL_LAYERS, Model, description
from fedspeech.models.description import ModelDescription
from fedspeech.models.tdnn import TDNN, Layer, Shape
from fedspeech.simulation import devices
from fedspeech.tensors import Tensors
from fedspeech.training.personal import validation_split
from fedspeech.units import learn

SIZES = {"0.1M": "benchmark-0.1m", "1M": "benchmark-1m", "14M": "tdnn"}
"""Names of `MODELS` by size; the last is the paper's own."""
STILL = PersonalAugmentation(speeds=(), time_masks=0, frequency_masks=0)
"""No variation of the speech."""
BATCH, RATE = 16, 5e-4


def _of_width(width: int, layers: tuple[Layer, ...] = SMALL_LAYERS) -> Model:
    return Model(TDNN, Shape(width, layers))


MODELS.update(
    {
        "benchmark-tiny": _of_width(24),
        "benchmark-0.1m": _of_width(56),
        "benchmark-1m": _of_width(216),
        "benchmark-4m": _of_width(256, PAPER_LAYERS),
    }
)


class Job(NamedTuple):
    """Fine-tune the first so many speakers, each on all of train_s and on its first 80 %.

    `seed` is another one in every repetition, so that no answer is one that is remembered.
    """

    size: str
    speakers: int
    epochs: int
    seed: int
    how: str = ""

    def settings(self, precision: str = "fp32") -> PersonalSettings:
        """The job in our words."""
        return PersonalSettings.model_validate(
            {
                "epochs": self.epochs,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "precision": precision,
                "augmentation": STILL.model_dump(mode="json"),
            }
        )


class Plain(NamedTuple):
    """One speaker's train_s: features float32 (frames, dimension), and unit numbers."""

    features: list[torch.Tensor]
    targets: list[list[int]]

    def part(self, chosen: Sequence[int]) -> "Plain":
        """Some of the utterances."""
        return Plain([self.features[i] for i in chosen], [self.targets[i] for i in chosen])

    def both_parts(self) -> tuple["Plain", "Plain"]:
        """All of train_s, which gives P_s, and its first 80 %, which give what judges alpha."""
        first, _ = validation_split(range(len(self.targets)))
        return self, self.part(first)


@dataclass(frozen=True)
class Workload:
    """What `prepare` left in a folder."""

    folder: Path

    @cached_property
    def devices(self) -> list[Path]:
        """The device folders, in the order of the speakers' ids."""
        return devices.folders(self.folder / "devices")

    def plain(self, speaker: int) -> Plain:
        """The speaker's train_s; read from disk each time, as a client does."""
        path = self.folder / "plain" / f"{self.devices[speaker].name}.pt"
        return Plain(*torch.load(path, weights_only=True))

    def generic(self, size: str) -> Tensors:
        """G."""
        return tensors.read(self.folder / "generic" / f"{size}.safetensors")

    def description(self, size: str) -> ModelDescription:
        """What goes with G."""
        return description.read(self.folder / "generic" / f"{size}.json")

    def updates(self, job: Job) -> int:
        """Updates of one speaker's two fine-tunings."""
        whole, most = self.plain(0).both_parts()
        return job.epochs * sum(math.ceil(len(part.targets) / BATCH) for part in (whole, most))

    def copy(self, folder: Path) -> Path:
        """The same in another folder, for one who writes in its devices."""
        shutil.copytree(self.folder, folder)
        return folder


def speak(
    speakers: int, utterances: int, seed: int, words: tuple[int, int] = (2, 4)
) -> list[Client]:
    """Speakers of the synthetic corpus, by default the demo's phrases; `utterances` in train_s."""
    settings = SyntheticSettings(
        speakers=speakers,
        train_utterances=utterances,
        test_utterances=2,
        words=words,
        seed=seed,
    )
    speech = synthetic.prepare(CorpusSettings(recipe="synthetic", synthetic=settings))
    part = TrainPart(field="part", values=("train",))
    return [
        partition.client(speaker, cuts, part)
        for speaker, cuts in sorted(partition.by_speaker(speech).items())
    ]


def prepare(
    folder: Path, clients: Sequence[Client], seed: int, sizes: Sequence[str] = tuple(SIZES)
) -> Workload:
    """Lay out devices, features and models; G has drawn weights at each size."""
    devices.lay_out(clients, folder / "devices", seed)
    texts = [text_of(cut) for client in clients for cut in client.train]
    units = learn(texts, UnitSettings(kind="words"))
    for size in sizes:
        about = ModelDescription(SIZES[size], FeatureSettings(), units)
        with seeding.scoped(seed, 0, size, "benchmark model"):
            model = tensors.state(about.empty())
        about.write(folder / "generic" / f"{size}.json")
        tensors.write(folder / "generic" / f"{size}.safetensors", model)
    workload = Workload(folder)
    for device in workload.devices:
        content = _features(Speaker(device), workload.description(sizes[0]))
        tensors.write_whole(folder / "plain" / f"{device.name}.pt", _saving(content))
    return workload


def _features(speaker: Speaker, about: ModelDescription) -> Plain:
    speaker.describe_model(about.to_json())
    utterances = speaker.utterances("train", STILL)
    rows = [features.batch([utterance], about.features).features[0] for utterance in utterances]
    return Plain(rows, [about.units.encode(utterance.text) for utterance in utterances])


def _saving(content: Plain) -> Callable[[Path], Any]:
    return lambda path: torch.save(tuple(content), path)
