"""The DDP engine: one replica a process, gradients averaged over micro-batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adafilter_dist.distributed.world import World
from adafilter_dist.engine.base import FullState, Recordable, Replicated
from adafilter_dist.engine.optimizer import build_optimizer, optimizer_tensors, put_optimizer
from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import UpdateRule
from adafilter_dist.models.ops.dtypes import autocast, weights_dtype
from adafilter_dist.recipe import Recipe

# Running statistics are averaged once a step, by the loop. Newer versions of torch renamed the key.
_STRIDES = "Grad strides do not match bucket view strides"
_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


class DDPEngine(Replicated):
    """torch's DistributedDataParallel; one process is DDP of one.

    A global batch is ``train.micro_batches`` micro-batches shared over the ranks, unevenly where
    they do not divide. DDP takes the mean over ranks, so each micro-batch's loss is weighed by
    world_size / micro_batches: the sum is the mean over micro-batches for any share.
    """

    described = ""

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        recipe: Recipe,
        world: World,
        rule: UpdateRule | None = None,
    ) -> None:
        self.dtype = weights_dtype(recipe.train.precision)
        layout = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
        # Parameters keep their identity through to(), so the groups stay right.
        placed: Any = model.to(world.device, self.dtype)  # torch 2.11's types know no memory_format
        self.model = placed.to(memory_format=layout)
        self._world = world
        self._clip_norm = recipe.train.clip_norm
        self._weight = world.world_size / recipe.train.micro_batches
        self._precision = recipe.train.precision
        self._optimizer = build_optimizer(groups, recipe.optim, rule)
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        self.trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        self.recordable: Recordable | None = None if recipe.train.compile else self
        self._sums: list[Tensor] = []  # of recorded gradients, where several are added up
        self._scaler = torch.amp.GradScaler(
            world.device.type, enabled=recipe.train.precision == "fp16"
        )
        compiled = torch.compile(self.model) if recipe.train.compile else None
        # A penalty on the weights gives those of a 1x1 convolution gradients whose strides differ
        # from theirs where a side is 1, so in name alone: the bytes lie the same, and DDP copies
        # them into its bucket in either case.
        warnings.filterwarnings("ignore", _STRIDES, UserWarning)
        self._ddp = DistributedDataParallel(
            _OrGradients(self.model, self.trained) if compiled is None else compiled,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_NO_BUFFER_SYNC,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), autocast inside, at least fp32 outside."""
        with autocast(self._world.device, self._precision):
            logits: Tensor = self._ddp(images)
        return logits.to(self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add one micro-batch's gradient, weighed so that the step has the mean."""
        self._scaler.scale(loss * self._weight).backward()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward: gradients travel only with the last of a rank's share."""
        return nullcontext() if last else self._ddp.no_sync()

    def forward_alone(self, images: Tensor) -> Tensor:
        """`forward` without DDP, whose hooks a recording could not hold."""
        with autocast(self._world.device, self._precision):
            logits: Tensor = self.model(images)
        return logits.to(self.dtype)

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        """What `backward` would add, under the loss scale of the moment (a tensor)."""
        return torch.autograd.grad(self._scaler.scale(loss * self._weight), self.trained)

    @torch.no_grad()
    def add_gradients(self, gradients: Sequence[Tensor], *, last: bool) -> None:
        """The first of a step are taken as they are, so that the sums have the bits of `backward`.

        DDP itself reduces the last: in the buckets, and so in the order, of a backward of its own,
        but after it and not beside it.
        """
        if last and self._world.world_size > 1:
            with torch.enable_grad():
                self._ddp(None, tuple(gradients)).backward()
            return
        before = [parameter.grad for parameter in self.trained]
        if all(gradient is not None for gradient in before):
            torch._foreach_add_(before, list(gradients))
            return
        if last:
            sums = list(gradients)
        else:
            self._sums = self._sums or [torch.empty_like(each) for each in gradients]
            torch._foreach_copy_(self._sums, list(gradients))
            sums = self._sums
        for parameter, gradient in zip(self.trained, sums, strict=True):
            parameter.grad = gradient

    def step(self, factor: float) -> bool:
        """Unscale, clip, update; False if an fp16 overflow skipped it (on all ranks alike)."""
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        self._scaler.unscale_(self._optimizer)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self._clip_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        # The scale falls only when the step was skipped: gradients were reduced before, so every
        # rank has seen the same overflow.
        return self._scaler.get_scale() >= scale

    def reduce(self, flat: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        dist.all_reduce(flat)
        return flat

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """A forward and backward thrown away, so that DDP's buckets have their final layout.

        DDP rebuilds its buckets after the first backward; from three ranks on, the layout decides
        the order of summation. A resumed run must not differ in it from an undisturbed one.
        """
        for _ in range(2):
            self._scaler.scale(run()).backward()
            self._optimizer.zero_grad()

    def full_state(self) -> FullState:
        """Parameters, buffers, optimizer tensors and the loss scale."""
        return FullState(
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self._optimizer, self.model),
            scaler=self._scaler.state_dict(),
        )

    def set_values(self, values: dict[str, Tensor]) -> None:
        """The rest stays as it is."""
        self._load_model(self.model.state_dict() | values)

    def _load_model(self, state: dict[str, Tensor]) -> None:
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"the state does not fit this model: {error}") from None

    def load_full_state(self, state: FullState) -> None:
        """Strictly: a missing or unknown name is a UserError."""
        self._load_model(state.model)
        put_optimizer(self._optimizer, self.model, state.optimizer)
        if self._scaler.is_enabled() and state.scaler:
            self._scaler.load_state_dict(state.scaler)


class _OrGradients(nn.Module):
    """The network; or, called with gradients, a number whose backward hands them to `trained`.

    So DDP gets gradients that were computed without it.
    """

    def __init__(self, network: nn.Module, trained: list[nn.Parameter]) -> None:
        super().__init__()
        self.network = network
        self._trained = trained

    def forward(self, images: Tensor | None, gradients: tuple[Tensor, ...] = ()) -> Tensor:
        if images is None:
            number: Tensor = _Hand.apply(gradients, *self._trained)
            return number
        logits: Tensor = self.network(images)
        return logits


class _Hand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *trained: Tensor) -> Tensor:
        ctx.gradients = gradients
        return trained[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, number: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients
