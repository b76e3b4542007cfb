"""Learners in processes of their own, on a tiny model and random speech; the same in plain sums.

A job runs in every process of a group at the same time. Everything is in double precision, without
dropout and augmentation, by SGD, so that it can be computed again by hand.
"""

import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fedspeech.config.data_parallel import ParallelSettings, ParallelTraining
from fedspeech.config.model import FeatureSettings
from fedspeech.errors import RunError
from fedspeech.features import Normalization, Utterance, batch
from fedspeech.models import tdnn
from fedspeech.models.contrastive import Contrastive
from fedspeech.models.rnnt import RNNT, Shape
from fedspeech.models.tdnn import TDNN, Layer
from fedspeech.training.parallel import loopback, method_of
from fedspeech.training.parallel.group import LOOPBACK, Group, Lost, Seat, form, join
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.share import Share
from fedspeech.training.parallel.watch import Measured, Pace, Watch

DIMENSION, WIDTH = 6, 5
FEATURES = FeatureSettings(kind="log-mel", dimension=DIMENSION)
NOTHING = {
    "speeds": (),
    "warps": (),
    "volumes": (),
    "noise": (),
    "time_masks": 0,
    "frequency_masks": 0,
}


class Letters:
    """Spells with three units."""

    def encode(self, text: str) -> list[int]:
        return ["abc".index(letter) + 1 for letter in text]


class FirstLetter:
    """Takes the first letter for a phrase, of three."""

    def encode(self, text: str) -> list[int]:
        return ["abc".index(text[0])]


def spoken(count: int = 12, seed: int = 0) -> list[Utterance]:
    """Random speech of different lengths."""
    draw = np.random.default_rng(seed)
    flat = Normalization(torch.zeros(DIMENSION), torch.ones(DIMENSION))
    return [
        Utterance(
            f"u{i}",
            "s",
            "".join(draw.choice(list("abc"), 2)),
            {1.0: torch.tensor(draw.normal(size=(12 + 3 * (i % 5), DIMENSION)).astype("float32"))},
            flat,
        )
        for i in range(count)
    ]


def model(seed: int = 0) -> TDNN:
    """Two layers with batch normalization, in double precision."""
    torch.manual_seed(seed)
    return TDNN(DIMENSION, 4, tdnn.Shape(WIDTH, (Layer(1), Layer(3, 1)))).double()


def transducer() -> RNNT:
    """A layer each, in double precision."""
    torch.manual_seed(0)
    return RNNT(DIMENSION, 4, Shape(1, WIDTH, 1, WIDTH, embedding=3, joint=4)).double()


def contrastive() -> Contrastive:
    """Knows three phrases; in single precision, as its LSTM takes features."""
    torch.manual_seed(0)
    made = Contrastive(DIMENSION, 4)
    made.know([[1], [2, 3], [3]])
    return made


def training(**changed: Any) -> ParallelTraining:
    """A constant rate, and nothing drawn."""
    return ParallelTraining(
        **{
            "epochs": 2,
            "batch_size": 3,
            "learning_rate": 0.05,
            "final_learning_rate": 0.05,
            "warmup": 0.0,
            "clean": 1.0,
            "gradient_norm": 1e9,
            "augmentation": NOTHING,
            "precision": "fp32",
            **changed,
        }
    )


@dataclass
class Job:
    """What one learner of a group does."""

    port: int
    generation: str
    rank: int
    parallel: ParallelSettings
    training: ParallelTraining = field(default_factory=training)
    utterances: int = 12
    kind: str = "tdnn"
    """Or `transducer`, where the first utterance has more units than there are steps, or
    `contrastive`."""
    begins: int = 0
    """The first part."""
    parameters: np.ndarray | None = None
    """To begin with."""
    apart: float = 0.0
    """How far the learners' first models are from each other."""
    spoiled: int | None = None
    """The rank whose model has a value that is no number."""
    misled: int | None = None
    """The rank whose gradient is multiplied by `factor`."""
    factor: float = float("nan")
    leaps: int | None = None
    """The rank whose step leads to a value that is no number, from a gradient that is sound."""
    deafened: int | None = None
    """The rank whose speech is no numbers."""
    recomputes: bool = False
    """Whether this learner has too little memory to keep what layers compute."""
    slowed: float = 1.0
    late: float = 0.0
    """Seconds that the last rank rests before its first part."""
    seconds: float = 60.0
    members: tuple[int, ...] | None = None
    leaves: int | None = None
    """After so many parts the learner with the last rank is gone."""


@dataclass
class Told:
    """What a learner tells of its job."""

    numbers: list[int]
    models: list[np.ndarray]
    """Parameters after each part, and at last at the end."""
    gradients: list[np.ndarray]
    """With which the steps were taken."""
    buffers: dict[str, np.ndarray]
    measured: Measured
    error: str | None = None


def shared(job: Job) -> Share:
    utterances = spoken(job.utterances)
    if job.kind == "transducer":
        utterances[0] = replace(utterances[0], text="abc" * 10)
    if job.deafened == job.rank:
        for utterance in utterances:
            utterance.log_mel[1.0][0] = float("nan")
    spelled = FirstLetter() if job.kind == "contrastive" else Letters()
    return Share(job.training, FEATURES, spelled, utterances, 0, job.parallel.learners)


def first_model(job: Job) -> torch.nn.Module:
    made = {"tdnn": model, "transducer": transducer, "contrastive": contrastive}[job.kind]()
    draw = np.random.default_rng(job.rank)
    if job.parameters is not None:
        torch.nn.utils.vector_to_parameters(torch.tensor(job.parameters), made.parameters())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += job.apart * torch.tensor(draw.normal(size=tuple(parameter.shape)))
    return made


def vector(module: torch.nn.Module) -> np.ndarray:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy().copy()


def gradient(module: torch.nn.Module) -> np.ndarray:
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(gradients).numpy().copy()


def spoil(module: torch.nn.Module) -> None:
    """Leave a value that is no number."""
    next(module.parameters()).data.view(-1)[0] = float("nan")


def warm() -> None:
    """Keep a process busy until all of them are there, with everything imported."""
    time.sleep(0.5)


def learn(job: Job) -> Told:
    """Learn all parts of one learner."""
    torch.set_num_threads(1)
    members = job.members or tuple(range(job.parallel.learners + method_of(job.parallel).servers))
    watch = Watch(Pace(job.slowed))
    loop = ParallelLoop(first_model(job), shared(job), watch, f"learner {job.rank}")
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.0)
    loop.model.recomputes = job.recomputes
    if job.misled == job.rank:
        next(loop.model.parameters()).register_hook(lambda gradient: gradient * job.factor)
    if job.leaps == job.rank:
        loop.optimizer.register_step_post_hook(lambda *_: spoil(loop.model))
    told = Told([], [], [], {}, watch.measured)
    group = method = None
    try:
        seat = Seat(job.rank, members, job.generation, job.seconds)
        group = form(join(LOOPBACK, job.port), seat, watch, threading.Event())
        method = method_of(job.parallel)(loop, group, job.parallel)
        for number in method.parts(job.begins):
            if job.leaves == len(told.numbers) and job.rank == members[-1]:
                raise Lost("leaves")
            if job.rank == members[-1] and not told.numbers:
                time.sleep(job.late)
            if job.spoiled == job.rank:
                spoil(loop.model)
            if not method.serves:
                loop.learn(method, number)
                told.gradients.append(gradient(loop.model))
            told.numbers.append(number)
            told.models.append(vector(loop.model))
        method.finish()
    except Exception as error:
        told.error = f"{type(error).__name__}: {error}"
    finally:
        if method is not None:
            method.close()
        if group is not None:
            group.close()
    told.models.append(vector(loop.model))
    told.buffers = {name: b.numpy().copy() for name, b in loop.model.named_buffers()}
    return told


class Plain:
    """The gradient of a model at some parameters, computed without any of the code under test."""

    def __init__(self, job: Job) -> None:
        self.model = model()
        self._utterances = spoken(job.utterances)
        self.start = vector(first_model(job))

    def gradient(self, parameters: np.ndarray, chosen: list[int]) -> np.ndarray:
        """Of the mean loss of some utterances."""
        self.model.train()
        self.model.zero_grad()
        torch.nn.utils.vector_to_parameters(torch.tensor(parameters), self.model.parameters())
        utterances = [self._utterances[i] for i in chosen]
        heard = batch(utterances, FEATURES)
        logits, lengths = self.model(heard.features, heard.lengths)
        targets = [Letters().encode(u.text) for u in utterances]
        loss = torch.nn.functional.ctc_loss(
            logits.log_softmax(2).transpose(0, 1),
            torch.tensor([number for target in targets for number in target]),
            lengths,
            torch.tensor([len(t) for t in targets]),
            reduction="none",
        )
        loss.mean().backward()
        return gradient(self.model)


def fails_beside(settings: Any, sizes: Any, rank: int, learners: int, port: int) -> None:
    """Of learners that are measured side by side one fails, and the others wait for it."""
    if rank == learners - 1:
        raise RunError("this one has too little memory")
    Group(rank, learners, join(LOOPBACK, port)).wait_for_all("batches")


def dies_beside(rank: int, port: int, piece: float, size: int) -> None:
    """Of two that measure how fast they talk one is killed, and the other waits for it."""
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)


def made_up_sums(rank: int, port: int, piece: float, size: int) -> list[loopback._Took]:
    """What nobody measured."""
    return 3 * [loopback._Took(1.0, 1.0)]


def others_beside(rank: int, port: int, others: int) -> float:
    """How many compute beside those that talk, when all of them do."""
    store = join(LOOPBACK, port)
    while int(store.add(loopback.COMPUTES, 0)) < others:
        time.sleep(0.01)
    store.set(loopback.TALKED, "")
    return float(others)


def fails_to_compute(port: int) -> None:
    """Two that talk wait until this one computes."""
    raise RunError("no processor is left")
