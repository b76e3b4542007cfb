"""Settings of where clients and trainings run."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedspeech.config.values import Count, NonNegative, Settings, Together

GPU_STEPS = 10_000
"""Ray counts in so many parts of a GPU."""
ROUNDING = 1e-6
# What is larger is a slip, and would end Ray, PyTorch or a clock in their own ways.
Processes = Annotated[int, Field(ge=1, le=10_000, strict=True)]
Processors = Annotated[int, Field(ge=1, le=1024, strict=True)]
Gpus = Annotated[int, Field(ge=0, le=10_000, strict=True)]
Patience = Annotated[float, Field(gt=0, le=1e7, strict=True)]


class WorkerSettings(Settings):
    """Where trainings run."""

    workers: Processes = 2
    """Processes, each with one thread; they change no result."""


class RaySettings(Settings):
    """What Ray gives its workers."""

    cpus_per_worker: Processors = 1
    """Also the threads that PyTorch may use in a worker."""
    gpus_per_worker: NonNegative = 0.0
    """0.25: four workers share a GPU. 0: Ray hides them, and workers train on processors."""
    simulated_gpus: Gpus = 0
    """GPUs that Ray is told of on a machine without one."""
    ray_address: Annotated[str, Field(pattern=r"^[^/\s]+:[0-9]{1,5}$")] | None = None
    """`host:port` of a Ray cluster that runs already; the workers join it, and it stays when the
    run ends. Speech and models travel by path, G by Ray: on every machine fedspeech is installed,
    and the run folder and the corpus lie at the same place (a shared file system). The cluster's
    token, if it wants one, is `$RAY_AUTH_TOKEN` with `RAY_AUTH_MODE=token`."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _as_ray_counts(cls, gpus: float) -> float:
        parts = gpus * GPU_STEPS
        if gpus >= 1 and not gpus.is_integer():
            raise ValueError("expected a whole number of GPUs, or a share of one (below 1)")
        if abs(parts - round(parts)) > ROUNDING:
            raise ValueError(f"expected a share in steps of {1 / GPU_STEPS:g}, as Ray counts")
        return gpus

    @model_validator(mode="after")
    def _gpus_are_the_clusters_own(self) -> "RaySettings":
        if self.ray_address is not None and self.simulated_gpus:
            raise ValueError(
                "simulated_gpus: a cluster that runs already (ray_address) has its own"
            )
        return self


class EngineSettings(RaySettings):
    """Where clients run."""

    grid: Literal["ray", "in-process", "deployment"] = "ray"
    """Ray's workers side by side, one client after the other, or the boxes of a SuperLink."""
    superlink: str | None = None
    """The connection in Flower's configuration by which `deployment` reaches its SuperLink."""
    workers: Processes = 2
    """Ray's processes."""
    cohort: Together = "auto"
    """Speakers that are fine-tuned as one stack of models; `auto` is as many as a worker's share of
    a GPU holds, and 1 where workers train on processors (`gpus_per_worker`), where plain loops are
    faster, or on a cluster with GPUs that this machine has none of. Another size gives other
    roundings.
    """
    retries: Count = 2
    """How often a message is tried again after its client raised, and on a new worker after its
    worker died or hung. After that its speaker is lost; where a cohort's workers die, the run ends.
    """
    message_seconds: Patience = 3600.0
    """A worker that does not answer a message within so many seconds is killed. With a cohort, it
    has so many for each speaker."""

    @property
    def cohort_size(self) -> int:
        """The number of speakers in a cohort; 1 where nothing has settled it."""
        return 1 if self.cohort == "auto" else self.cohort
