"""No engine at all: one single-threaded process per core takes speaker after speaker.

`how` is "plain" for a training loop as anybody writes it in PyTorch, or "our loop" for that of
fedspeech. Each P_s is written to disk, as a script would.
"""

import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch.utils.data import DataLoader

from experiments.benchmarks import workload
from experiments.benchmarks.harness import Channel
from experiments.benchmarks.workload import Job, Plain, Workload
from fedspeech.config.model import FeatureSettings
from fedspeech.features import Normalization, Utterance
from fedspeech.tensors import Tensors
from fedspeech.training.personal import fine_tune as fine_tune_with_our_loop
from fedspeech.units import Units

Example = tuple[torch.Tensor, list[int]]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def collate(examples: list[Example]) -> Batch:
    """Features (batch, frames, dimension), their lengths, unit numbers in a row, their numbers."""
    features, targets = zip(*examples, strict=True)
    return (
        torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
        torch.tensor([len(rows) for rows in features]),
        torch.tensor([unit for numbers in targets for unit in numbers]),
        torch.tensor([len(numbers) for numbers in targets]),
    )


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """CTC, the mean over the batch."""
    features, lengths, targets, target_lengths = batch
    logits, frames = model(features, lengths)
    losses = torch.nn.functional.ctc_loss(
        logits.log_softmax(2).transpose(0, 1),
        targets,
        frames,
        target_lengths,
        reduction="none",
        zero_infinity=True,
    )
    return losses.mean()


def train(model: torch.nn.Module, speech: Plain, epochs: int) -> torch.optim.Optimizer:
    """Fine-tune in place; the optimizer, which knows how many updates there were."""
    examples = list(zip(speech.features, speech.targets, strict=True))
    loader = DataLoader(examples, batch_size=workload.BATCH, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.Adam(model.parameters(), lr=workload.RATE)
    device = next(model.parameters()).device
    model.train()
    for _ in range(epochs):
        for features, lengths, targets, target_lengths in loader:
            batch = (features.to(device), lengths.to(device), targets.to(device), target_lengths)
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return optimizer


def fine_tune(held: Workload, job: Job, speaker: int) -> Tensors:
    """Both fine-tunings of one speaker; P_s."""
    about, generic = held.description(job.size), held.generic(job.size)
    modules = [about.module(generic) for _ in range(2)]
    for module, speech in zip(modules, held.plain(speaker).both_parts(), strict=True):
        train(module, speech, job.epochs)
    return modules[0].state_dict()


def fine_tune_our_way(held: Workload, job: Job, speaker: int) -> Tensors:
    """The same with fedspeech's loop, which takes features for log-mel energies."""
    about, generic = held.description(job.size), held.generic(job.size)
    about = replace(about, features=FeatureSettings(kind="log-mel"))
    models = []
    for part, speech in enumerate(held.plain(speaker).both_parts()):
        name = (job.seed, 0, str(speaker), str(part))
        utterances = as_ours(speech, about.units)
        models.append(fine_tune_with_our_loop(generic, about, job.settings(), utterances, name))
    return models[0].model


def as_ours(speech: Plain, units: Units) -> list[Utterance]:
    """Utterances whose log-mel energies are the features, which are normalized already."""
    width = speech.features[0].shape[1]
    nothing = Normalization(torch.zeros(width), torch.ones(width))
    return [
        Utterance("", "", units.decode(targets), {1.0: rows}, nothing)
        for rows, targets in zip(speech.features, speech.targets, strict=True)
    ]


def _one(folder: Path, job: Job, speaker: int) -> None:
    held = Workload(folder)
    work = fine_tune if job.how == "plain" else fine_tune_our_way
    torch.save(work(held, job, speaker), folder / "plain" / f"personal-{speaker}.pt")


def serve(channel: Channel, folder: Path, workers: int) -> None:
    """Answer each job with the seconds that it took."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, torch.set_num_threads, (1,)) as pool:
        pool.map(abs, range(workers), chunksize=1)
        channel.answer("ready")
        for job in channel:
            started = perf_counter()
            pool.map(partial(_one, folder, job), range(job.speakers), chunksize=1)
            channel.answer(perf_counter() - started)
