"""Who is measured, each with a function that answers jobs in a process of its own."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.contestants import apples_pfl, flower, ours, plain
from experiments.benchmarks.contestants.ours import Engine
from experiments.benchmarks.harness import Child, Failed
from fedspeech import machine
from fedspeech.accelerator import computes_in_bf16

CORES = machine.cores()


class Contestant(NamedTuple):
    """A name, the function that serves and its last argument, and how jobs are to be done there."""

    name: str
    serve: Callable[..., None]
    argument: object
    how: str = ""

    @property
    def process(self) -> Any:
        """Those for whom this is equal share a process."""
        return self.serve, self.argument

    def check(self) -> None:
        """Raise Failed where it cannot take part."""
        if self.serve is apples_pfl.serve and find_spec("pfl") is None:
            raise Failed("skipped: pfl is not installed (requirements.txt beside the benchmarks)")
        if self.how == "bf16" and not computes_in_bf16("auto"):
            raise Failed("skipped: this machine does not compute in bf16")

    def start(self, folder: Path, log: Path) -> Child:
        """Its process, on a workload of its own."""
        return Child(self.serve, folder, self.argument, log=log)


PLAIN = Contestant("plain PyTorch, a process per core", plain.serve, CORES, "plain")
OUR_LOOP = Contestant("our loop, a process per core", plain.serve, CORES, "our loop")
OURS = Contestant("fedspeech, fp32", ours.serve, Engine(CORES), "fp32")
OURS_BF16 = Contestant("fedspeech, bf16", ours.serve, Engine(CORES), "bf16")
COHORT = 4
OURS_COHORT = Contestant(
    f"fedspeech, cohorts of {COHORT}, fp32", ours.serve, Engine(CORES, COHORT), "fp32"
)
OURS_COHORT_BF16 = OURS_COHORT._replace(name=f"fedspeech, cohorts of {COHORT}, bf16", how="bf16")
FLOWER = Contestant("Flower, our client", flower.serve, "one CPU", "our client")
QUICKSTART = Contestant("Flower, quickstart client", flower.serve, "one CPU", "quickstart")
FLOWER_STOCK = Contestant("Flower as it comes, our client", flower.serve, "stock", "our client")
QUICKSTART_STOCK = Contestant(
    "Flower as it comes, quickstart client", flower.serve, "stock", "quickstart"
)
PFL = Contestant("Apple's pfl", apples_pfl.serve, CORES)

FIELD = (PLAIN, OUR_LOOP, OURS, OURS_BF16, OURS_COHORT, OURS_COHORT_BF16, FLOWER, QUICKSTART, PFL)
"""Who is asked for speakers per second; the first one is what the others are measured by."""
RACE = (OURS, OURS_BF16, FLOWER, FLOWER_STOCK, QUICKSTART, QUICKSTART_STOCK, PFL)
"""Who runs from start to end."""
