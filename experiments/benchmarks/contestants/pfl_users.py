"""One process of Apple's pfl: the model, loss, optimizer and batches of everybody else.

A speaker is two of pfl's users, one for each fine-tuning. The processes of a job add up their sums
of differences at its end, as pfl is made to do; no personal model is kept.

Importing pfl connects the processes that `PFL_WORKER_ADDRESSES` names, and waits for all of them.
"""

import itertools
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import plain
from experiments.benchmarks.workload import Job, Workload

User = tuple[int, int]
"""A speaker's number; 0 for all of its train_s, 1 for the first 80 %."""


class Trained(torch.nn.Module):
    """A model with its loss, as pfl wants it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def loss(self, *batch: torch.Tensor) -> torch.Tensor:
        """CTC, the mean over the batch."""
        self.module.train()
        return plain.loss(self.module, batch)

    def metrics(self, *batch: torch.Tensor) -> dict[str, Any]:
        """Nothing; pfl insists on the method and is not asked to evaluate."""
        return {}


def gather(held: Workload, job: Job) -> None:
    """This process's share of the users, and the sum over all of them."""
    module = held.description(job.size).module(held.generic(job.size))
    central = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(Trained(module), torch.optim.Adam, central)
    backend = SimulatedBackend(_speech(held, job), val_data=None)
    SimulatedBackend.gather_results(
        backend, model, FederatedAveraging(), central_context=_context(job)
    )


def _speech(held: Workload, job: Job) -> FederatedDataset:
    def load(user: User) -> PyTorchDataDataset:
        speaker, part = user
        speech = held.plain(speaker).both_parts()[part]
        examples = list(zip(speech.features, speech.targets, strict=True))
        return PyTorchDataDataset(examples, collate_fn=plain.collate, shuffle=True)

    users = itertools.cycle([(s, part) for part in (0, 1) for s in range(job.speakers)])
    return FederatedDataset(load, lambda: next(users))


def _context(job: Job) -> CentralContext:
    training = NNTrainHyperParams(
        local_batch_size=workload.BATCH,
        local_num_epochs=job.epochs,
        local_learning_rate=workload.RATE,
    )
    rounds = NNAlgorithmParams(
        central_num_iterations=1,
        evaluation_frequency=1,
        train_cohort_size=2 * job.speakers,
        val_cohort_size=None,
    )
    return CentralContext(
        current_central_iteration=0,
        do_evaluation=False,
        cohort_size=2 * job.speakers,
        population=Population.TRAIN,
        algorithm_params=rounds,
        model_train_params=training,
    )
