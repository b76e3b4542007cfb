"""Cohorts beside plain loops in one process: on a GPU where there is one, else on one core.

The plain loop fine-tunes one speaker after another, the cohort all of them as one stack of models;
the speech is drawn. Arithmetic is that of one plain update, counted by PyTorch, times the updates;
what a matrix product of this size reaches here stands for the peak.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks import workload
from experiments.benchmarks.contestants import plain
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, ratio, say, spread
from experiments.benchmarks.workload import Job, Plain
from fedspeech import seeding, tensors
from fedspeech.accelerator import autocast, place
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.features import one_thread
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors
from fedspeech.training.personal import Tuning, fine_tune_together
from fedspeech.units import learn

TABLE = "Cohorts beside plain loops"
LIMIT = 900.0
PANELS = (Panel(TABLE, "size", "/ the loop's speed", ("precision",)),)
WORDS = "one two three four five six seven eight nine ten"
FRAMES = (100, 200)
WORDS_EACH = 3
Way = tuple[str, str]
"""Loop or cohort, and its precision."""
Outputs = tuple[torch.Tensor, torch.Tensor]
Forward = Callable[..., Outputs]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """Jobs, of which one cohort is made each; utterances of a speaker; repetitions."""

    jobs: tuple[Job, ...]
    utterances: int = 48
    repeats: int = 3


ON_CORE = (Job("0.1M", 8, 2, 0), Job("1M", 4, 1, 0), Job("14M", 2, 1, 0))
ON_GPU = (Job("0.1M", 64, 12, 0), Job("1M", 64, 12, 0), Job("14M", 16, 12, 0))
FULL = Plan(ON_GPU if place().type == "cuda" else ON_CORE)
QUICK = Plan((Job("0.1M", 8, 1, 0), Job("1M", 4, 1, 0)), utterances=16, repeats=2)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """A row for each job and precision, of the cohort and of the loop."""
    with one_thread():
        for job in plan.jobs:
            yield from Case(job, plan.utterances, setting.seed).measure(plan.repeats)


class Case:
    """Drawn speech of some speakers, and one G for all of them."""

    def __init__(self, job: Job, utterances: int, seed: int) -> None:
        units = learn([WORDS], UnitSettings(kind="words"))
        self.job = job
        # Drawn features are taken as they are: no cosine transform, nothing normalized.
        features = FeatureSettings(kind="log-mel")
        self.description = ModelDescription(workload.SIZES[job.size], features, units)
        with seeding.scoped(seed, 0, "", "benchmark model"):
            self.generic = tensors.state(self.description.empty())
        self.speech = [self._draw(seed, str(s), utterances) for s in range(job.speakers)]

    def _draw(self, seed: int, speaker: str, utterances: int) -> Plain:
        draw = seeding.generator(seed, 0, speaker, "benchmark speech")
        lengths = draw.integers(*FRAMES, utterances)
        width = self.description.features.dimension
        drawn = [torch.from_numpy(draw.normal(size=(n, width))).float() for n in lengths]
        units = len(self.description.units)
        return Plain(drawn, draw.integers(1, units, (utterances, WORDS_EACH)).tolist())

    def measure(self, repeats: int) -> Iterator[Row]:
        """The loop and the cohorts in turns, after a repetition that warms up."""
        ways: dict[Way, Callable[[str], object]] = {
            (name, precision): work
            for precision in DTYPES
            for name, work in (("loop", self.loop), ("cohort", self.cohort))
        }
        seconds: dict[Way, list[float]] = {way: [] for way in ways}
        for turn in range(-1, repeats):
            say(f"cohorts: {self.job.size}, {'warming up' if turn < 0 else turn + 1}")
            for way, work in ways.items():
                taken = timed(partial(work, way[1]))
                if turn >= 0:
                    seconds[way].append(taken)
        arithmetic = self.arithmetic()
        for precision in DTYPES:
            loop, taken = seconds["loop", precision], seconds["cohort", precision]
            speakers = self.job.speakers
            reached = [arithmetic / s / 1e9 for s in taken]
            peak = matrix_products(DTYPES[precision])
            yield {
                "table": TABLE,
                "on": torch.cuda.get_device_name() if place().type == "cuda" else "one core",
                "size": self.job.size,
                "speakers in the cohort": speakers,
                "precision": precision,
                "loop, speakers per second": spread([speakers / s for s in loop]),
                "cohort, speakers per second": spread([speakers / s for s in taken]),
                "/ the loop's speed": ratio(loop, taken),
                "cohort, GFLOP/s": spread(reached),
                "% of matrix products": spread([100 * each / peak for each in reached]),
            }

    def loop(self, precision: str) -> list[Tensors]:
        """One speaker after the other."""
        modules = [self.description.module(self.generic).to(place()) for _ in self.speech]
        for module, speech in zip(modules, self.speech, strict=True):
            module.forward = partial(_within, module.forward, precision)
            plain.train(module, speech, self.job.epochs)
        return [tensors.state(module) for module in modules]

    def cohort(self, precision: str) -> list[Tensors]:
        """All speakers as one stack."""
        tunings = [
            Tuning(self.generic, plain.as_ours(speech, self.description.units), (0, 0, str(s), ""))
            for s, speech in enumerate(self.speech)
        ]
        settings = self.job.settings(precision)
        found = fine_tune_together(self.description, settings, tunings)
        return [each.model for each in found if each is not None]

    def arithmetic(self) -> int:
        """Floating point operations of the job's matrix products, forth and back."""
        module = self.description.module(self.generic)
        with FlopCounterMode(display=False) as counter:
            plain.train(module, self.speech[0], 1)
        return int(counter.get_total_flops()) * self.job.epochs * self.job.speakers


def _within(forward: Forward, precision: str, *batch: torch.Tensor) -> Outputs:
    """A plain model's outputs; what comes of them is float32, as everybody has it."""
    with autocast(precision):
        logits, frames = forward(*batch)
    return logits.float(), frames


def timed(work: Callable[[], object]) -> float:
    """Seconds until the accelerator is done."""
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def matrix_products(dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product, the best of some."""
    size = 8192 if place().type == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=dtype, device=place())
    return 2 * size**3 / min(timed(lambda: matrix @ matrix) for _ in range(5)) / 1e9


def _wait() -> None:
    if place().type == "cuda":
        torch.cuda.synchronize()
