"""How many speakers are fine-tuned as one stack: settled once, before anything runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedspeech import machine, models, progress
from fedspeech.accelerator import lattice_bytes, trains_on_gpu, within_memory
from fedspeech.config import Config
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import ConfigError, RunError
from fedspeech.models.rnnt import RNNT

log = logging.getLogger("fedspeech")

LONGEST_SECONDS = 20.0
"""Of an utterance, for the memory that a minibatch is taken to need."""
FRAMES_PER_SECOND = 100
UNITS = 500
"""Output units that a model is taken to have before its vocabulary is known."""
SHARE = 0.6
"""Of a worker's memory, what a cohort may take."""
VALUE_BYTES = 4
COPIES = 4
"""Of every weight: itself, its gradient and two moments. Of every layer's output: what came out of
its product, its rectifier and its normalization, and a gradient."""


def settle(settings: Config, before: int | None = None) -> Config:
    """The settings with the size of cohorts as a number; `before` is that of a run to be resumed.

    Raises ConfigError where a given size does not fit the memory: another size would give other
    roundings, so none is taken instead. Also where GPUs are simulated beside real ones: workers
    would not train where they seem to.
    """
    _check_gpus(settings.engine)
    if settings.engine.cohort == "auto" and before is not None:
        settings = with_cohort(settings, before)
    asked = settings.engine.cohort
    if trains_on_gpu(settings.engine) and not torch.cuda.is_available():
        # A cluster's GPUs, whose memory is not known here.
        return with_cohort(settings, 1) if asked == "auto" else settings
    most = most_together(settings)
    if asked == "auto":
        # On a processor plain loops are faster than a stack.
        return with_cohort(settings, max(1, most) if trains_on_gpu(settings.engine) else 1)
    if asked > max(1, most):
        raise ConfigError(
            f"engine.cohort: {asked} speakers with a {settings.model.name} each do not fit the "
            f"memory of a worker ({bytes_each(settings) / 2**20:,.0f} MiB for each speaker); "
            f"{_would(most)}"
        )
    return settings


def tell(settings: Config) -> None:
    """Say so where speakers are fine-tuned one by one, and what a stack would be."""
    if settings.engine.cohort_size == 1 and not trains_on_gpu(settings.engine):
        progress.say(
            "speakers are fine-tuned one by one: on a processor plain loops are faster than a stack"
        )


def _would(most: int) -> str:
    return f"{most} would" if most else "not even one would"


@contextmanager
def measured(count: int) -> Iterator[None]:
    """Let so many speakers be fine-tuned as a stack in the block.

    Raises RunError where memory runs out. On a GPU the size that it names follows from what each
    speaker had taken by then, which is not yet all of it: hence the same share as before the run.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    too_large = (
        f"a cohort of {count} speakers does not fit the memory of a worker; engine.cohort = "
        f"{max(1, count // 2)} takes half of it"
    )
    with within_memory(too_large):
        try:
            yield
        except torch.OutOfMemoryError:
            each = torch.cuda.max_memory_allocated() / count
            there = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
            most = min(count - 1, int(SHARE * there / each))
            raise RunError(
                f"a cohort of {count} speakers does not fit the memory of a worker (each had taken "
                f"{each / 2**20:,.0f} MiB of {there / 2**20:,.0f} MiB); {_would(most)} "
                "(engine.cohort)"
            ) from None


def with_cohort(settings: Config, size: int) -> Config:
    """The settings with this size of cohorts."""
    engine = settings.engine.model_copy(update={"cohort": size})
    return settings.model_copy(update={"engine": engine})


def _module(settings: Config) -> torch.nn.Module:
    """The model without weights."""
    with torch.device("meta"):
        model = models.find(settings.model.name, settings.model.sizes)
        return model.build(settings.features.dimension, UNITS)


def most_together(settings: Config) -> int:
    """How many speakers one worker's memory holds; may be 0."""
    engine = settings.engine
    if trains_on_gpu(engine):
        there = torch.cuda.get_device_properties(0).total_memory
        memory = there * (min(1.0, engine.gpus_per_worker) if engine.grid == "ray" else 1.0)
    else:
        memory = machine.memory_limit_bytes() / (engine.workers if engine.grid == "ray" else 1)
    return int(_room(settings, memory) / bytes_each(settings))


def _room(settings: Config, memory: float) -> float:
    """Bytes that a cohort may take of a worker's: its share, and no more than a transducer's
    lattice leaves; but half of that share, since a lattice is rarely as large as it may be.
    """
    share = SHARE * memory
    if models.criterion(_module(settings)) != "rnnt":
        return share
    return max(share / 2, min(share, memory - lattice_bytes()))


def _check_gpus(engine: EngineSettings) -> None:
    if not torch.cuda.is_available():
        return
    if engine.simulated_gpus and engine.grid == "ray":
        raise ConfigError(
            f"engine.simulated_gpus: {engine.simulated_gpus} on a machine with "
            f"{torch.cuda.device_count()} real ones, expected 0: models would depend on which "
            "workers get a real one"
        )
    if not trains_on_gpu(engine):
        log.warning(
            "engine.gpus_per_worker = 0: workers train on processors, the GPUs here stay idle"
        )


def bytes_each(settings: Config) -> int:
    """What the fine-tuning of one speaker takes in a stack, at the most.

    Weights and a minibatch of the longest utterances: every layer's outputs, and what its product
    reads with its neighbouring frames beside each other. A transducer's lattice comes on top: it
    takes its share of the memory whatever the batch.
    """
    model = _module(settings)
    values = sum(map(_values, model.modules()))
    if isinstance(model, RNNT):  # whose second layer sees some steps of the first one at a time
        values += (model.shape.joined - 1) * _values(model.layers("encoder")[0])
    subsampling = getattr(model, "subsampling", 1)
    frames = LONGEST_SECONDS * FRAMES_PER_SECOND / subsampling * settings.personal.batch_size
    return int(VALUE_BYTES * (COPIES * models.parameters(model) + frames * values))


def _values(module: torch.nn.Module) -> int:
    """What a layer keeps of each frame, for its gradient; an LSTM its four gates before and after
    what bounds them, its cells, what it gives, and what it projects that to."""
    if isinstance(module, torch.nn.Conv1d):
        return module.in_channels * module.kernel_size[0] + COPIES * module.out_channels
    if isinstance(module, torch.nn.LSTM):
        return module.input_size + 3 * COPIES * module.hidden_size + module.proj_size
    return 0
