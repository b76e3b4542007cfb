"""Synchronous SGD: every step is one on the joined batch of all learners.

PyTorch's DistributedDataParallel averages the gradients, while they are still being computed, and
its communication hooks pack them: in half precision, or as matrices of low rank (Vogels,
Karimireddy, Jaggi 2019, PowerSGD). Losses are normalized over the joined batch and batch
statistics are those of all its frames, so that n learners compute what one would on the whole.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from fedspeech import tensors
from fedspeech.accelerator import place
from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.models.tdnn import TDNN, MaskedBatchNorm
from fedspeech.training.parallel.group import Group, losing, summed_bytes
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import Method
from fedspeech.training.parallel.share import Part

LOW_RANK = 2
PLAIN_STEPS = 10
"""Steps before PowerSGD begins, whose first ones go whole."""
Gathered = Callable[[torch.Tensor], torch.Tensor]


class Allreduce(Method):
    """DDP over all learners."""

    restarts = True
    alike = True

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        super().__init__(loop, group, settings)
        self._joined = Joined(loop, group, settings.hook)

    def weight(self, part: Part) -> float:
        """DDP takes the mean over learners of what are shares of one sum."""
        return self.group.size / part.joined

    def exchange(self, part: Part) -> None:
        """Gradients are averaged already."""
        self.group.check()
        self.loop.step()

    def close(self) -> None:
        """The model is one of its own again."""
        self._joined.part_ways()


class Joined:
    """A model whose gradients are those of several learners' joined batch.

    `group` has these learners, all of the process group if it is None.
    """

    def __init__(
        self,
        loop: ParallelLoop,
        group: Group,
        hook: str = "none",
        learners: dist.ProcessGroup | None = None,
    ) -> None:
        self._loop, self._group, self._learners = loop, group, learners
        self._size = group.size if learners is None else learners.size()
        self._pack: Callable[[GradBucket], torch.futures.Future[torch.Tensor]]
        if self._size > 1:
            self._pack = self._packing(hook)
            self._agree_on_memory()
            self._wrap()

    def part_ways(self) -> None:
        """Take from the model what joins it to others."""
        self._loop.hears = self._loop.alone
        for norm in _norms(self._loop.model):
            norm.gathered = None

    def _wrap(self) -> None:
        device = place()
        with losing():
            wrapped = DistributedDataParallel(
                self._loop.alone,
                device_ids=[device] if device.type == "cuda" else None,
                process_group=self._learners,
                broadcast_buffers=False,
                # Nor does it change the order in which it sums after the first step: a training
                # that is gone on with would round otherwise.
                find_unused_parameters=True,
                # Gradients stay where they were summed, and are not copied back.
                gradient_as_bucket_view=True,
            )
        if dist.get_rank(self._learners) == 0:  # whose model it has given to all
            whole = tensors.size(dict(self._loop.model.named_parameters()))
            self._group.watch.sent((self._size - 1) * whole)
        wrapped.register_comm_hook(None, self._average)
        self._loop.hears = wrapped
        for norm in _norms(self._loop.model):
            norm.gathered = self._gather

    def _agree_on_memory(self) -> None:
        """Layers are computed twice by all or by none: their statistics are asked for together."""
        model = self._loop.model
        if isinstance(model, TDNN):
            wishes = torch.tensor(float(model.recomputes), device=place())
            self._group.sum(wishes, self._learners)
            model.recomputes = bool(wishes)

    def _average(self, state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        self._loop.sound([bucket.buffer()])
        packed = self._pack(bucket)
        self._group.watch.ready()
        return packed

    def _packing(self, hook: str) -> Any:
        group: Any = self._learners or dist.group.WORLD
        watch = self._group.watch

        def whole(bucket: GradBucket) -> Any:
            watch.sent(summed_bytes(bucket.buffer(), self._size))
            return default_hooks.allreduce_hook(group, bucket)

        def halved(bucket: GradBucket) -> Any:
            # A gradient may be a number, and too large a one for half precision.
            ends = bucket.buffer().aminmax()
            self._loop.sound(end.half().float() for end in ends)
            watch.sent(summed_bytes(bucket.buffer(), self._size) // 2)
            return default_hooks.fp16_compress_hook(group, bucket)

        state = powerSGD_hook.PowerSGDState(
            group, LOW_RANK, start_powerSGD_iter=PLAIN_STEPS, random_seed=0
        )

        def of_low_rank(bucket: GradBucket) -> Any:
            before = state.total_numel_after_compression
            found = powerSGD_hook.powerSGD_hook(state, bucket)
            # Its sums follow each other in threads of their own. Only one after the other do they
            # come in the same order everywhere, as they have to.
            with watch.waits():
                found.wait()
            packed = state.total_numel_after_compression - before
            some = bucket.buffer()[:packed] if packed else bucket.buffer()
            watch.sent(summed_bytes(some, self._size))
            return found

        return {"none": whole, "fp16": halved, "powersgd": of_low_rank}[hook]

    def _gather(self, own: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Gather.apply(own, self._loop, self._group, self._learners)  # type: ignore[no-untyped-call]
        return found


class _Gather(torch.autograd.Function):
    """What each learner measured, for all of them; the gradients go back to who measured it."""

    @staticmethod
    def forward(
        ctx: Any,
        own: torch.Tensor,
        loop: ParallelLoop,
        group: Group,
        learners: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        loop.sound([own])
        ctx.loop, ctx.group, ctx.learners = loop, group, learners
        ctx.rank = dist.get_rank(learners)
        return group.gather(own, learners)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.loop.sound(gradients)
        # What is as small as this is sooner gathered and summed here than summed on its way.
        return ctx.group.gather(gradients[0], ctx.learners).sum(0)[ctx.rank], None, None, None


def _norms(model: torch.nn.Module) -> list[MaskedBatchNorm]:
    return [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
