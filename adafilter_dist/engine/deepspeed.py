"""The DeepSpeed engine: ZeRO 0 to 3, the same step and the same checkpoints as DDP's.

DeepSpeed reduces gradients, shares out what the stage says and updates. Precision, loss scale and
checkpoints are ours: its own precision sections round frozen weights, its scaler does not recover
from an overflow above ZeRO-0, and its checkpoints leave frozen weights and buffers out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adafilter_dist.distributed.deepspeed_import import import_deepspeed
from adafilter_dist.distributed.world import World
from adafilter_dist.engine.base import FullState, Recordable
from adafilter_dist.engine.optimizer import build_optimizer
from adafilter_dist.engine.scaler import LossScaler
from adafilter_dist.engine.zero import Stage0, Stage3, Stages12
from adafilter_dist.errors import DivergedError
from adafilter_dist.methods.base import UpdateRule
from adafilter_dist.models.ops.dtypes import autocast
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.deepspeed_json import is_off, without_auto
from adafilter_dist.recipe.sections.engine import DeepSpeed


class _Autocast(nn.Module):
    """Runs `inner` under torch's autocast; parameters, gradients and buffers stay as they are."""

    def __init__(self, inner: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.inner = inner
        self._device, self._precision = device, precision

    def forward(self, images: Tensor) -> Tensor:
        with autocast(self._device, self._precision):
            logits: Tensor = self.inner(images)
        return logits


class DeepSpeedEngine:
    """`deepspeed.initialize` behind the interface of every engine.

    Each rank has the same number of micro-batches. DeepSpeed divides their losses by that number
    and takes the mean over ranks: the gradient is the mean over all micro-batches, as under DDP.
    """

    recordable: Recordable | None = None  # hooks reduce gradients while backward runs

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        recipe: Recipe,
        settings: DeepSpeed,
        world: World,
        rule: UpdateRule | None = None,
    ) -> None:
        train, stage = recipe.train, settings.zero_stage
        deepspeed = import_deepspeed(world.device)
        self.dtype = torch.float32
        self.model = model.to(world.device, self.dtype)
        self._clip_norm = train.clip_norm
        self._fp16 = train.precision == "fp16"
        optimizer = build_optimizer(groups, recipe.optim, rule)
        shared = _STAGES[stage]
        before = shared.before(self.model)
        inner: Any = torch.compile(self.model) if train.compile else self.model
        # Ranks talk in the group that has been made, with its time-out, and not in a copy of it.
        deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD
        self._engine, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=world.device.index or 0),
            model=_Autocast(inner, world.device, train.precision),
            optimizer=optimizer,
            config=_config(recipe, settings, world.world_size),
        )
        if train.channels_last:
            _channels_last(self.model, parameters=stage == 0)
        self._optimizer = self._engine.optimizer
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._shared = shared(self.model, self._optimizer, before)
        self._scaler: LossScaler | torch.amp.GradScaler
        if stage:
            self._scaler = LossScaler()
        else:
            self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._fp16)
            self._engine.torch_autocast_z0_gradscaler = self._scaler
        self.described = (
            f"DeepSpeed {deepspeed.__version__}, ZeRO-{stage}, {train.precision}, "
            f"{train.micro_batches // world.world_size} micro-batches a rank"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), autocast inside, at least fp32 outside."""
        logits: Tensor = self._engine(images)
        return logits.to(self.dtype)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward; the update may follow the last of a rank's share."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add one micro-batch's gradient, so that the step has the mean."""
        if self._fp16 and isinstance(self._scaler, LossScaler):
            self._optimizer.override_loss_scale(self._scaler.scale)
        self._engine.backward(loss)

    def step(self, factor: float) -> bool:
        """Unscale, clip, update; False if an fp16 overflow skipped it (on all ranks alike).

        Raises DivergedError where gradients are not finite and no loss scale is to blame.
        """
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        if isinstance(self._scaler, LossScaler):
            self._engine.step()
            taken: bool = self._engine.was_step_applied()
            if not taken and not self._fp16:
                raise DivergedError(
                    "the gradients became infinite or NaN; the last good checkpoint is kept; lower "
                    "optim.lr, or set train.clip_norm"
                )
            self._scaler.update(overflow=not taken)
            return taken
        self._scaler.unscale_(self._optimizer)
        if self._clip_norm is not None:
            trained = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self._clip_norm)
        scale = self._scaler.get_scale()
        self._engine.step()
        return self._scaler.get_scale() >= scale

    def reduce(self, flat: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        dist.all_reduce(flat)
        return flat

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """Nothing: DeepSpeed's buckets are those of the first backward for good."""

    def full_state(self) -> FullState:
        """Parameters, buffers, optimizer tensors and the loss scale; collective."""
        return FullState(
            model=self._shared.model_state(),
            optimizer=self._shared.optimizer_state(),
            scaler=self._scaler.state_dict() if self._fp16 else {},
        )

    def load_full_state(self, state: FullState) -> None:
        """Strictly: a missing or unknown name is a UserError."""
        self._shared.load_model(state.model)
        self._shared.load_optimizer(state.optimizer)
        if self._fp16 and state.scaler:
            self._scaler.load_state_dict(state.scaler)

    def set_values(self, values: dict[str, Tensor]) -> None:
        """Also in the fp32 copies that the stages 1 to 3 update."""
        self._shared.load_model(self._shared.model_state() | values)

    def parts(self) -> dict[str, Tensor]:
        """Whole parameters, this rank's shards of them under ZeRO-3."""
        return self._shared.parts()

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """What of a whole tensor is this rank's."""
        return self._shared.part_of(name, whole)

    def gathered(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from every rank's parts; collective."""
        return self._shared.gathered(parts)

    def whole_model(self) -> AbstractContextManager[nn.Module]:
        """The network; under ZeRO-3 a copy with whole weights, for as long as it is used."""
        return self._shared.whole_model()


BUCKET = 25_000_000 // 4  # elements
_STAGES: dict[int, Any] = {0: Stage0, 1: Stages12, 2: Stages12, 3: Stage3}


def _channels_last(model: nn.Module, *, parameters: bool) -> None:
    """After DeepSpeed has taken the model: it takes parameters as rows of numbers only.

    From ZeRO-1 on they stay that, as views of flat memory; the frozen filters do not.
    """
    if parameters:
        whole: Any = model  # torch 2.11's types know no memory_format
        whole.to(memory_format=torch.channels_last)
    for buffer in model.buffers():
        if buffer.ndim == 4:
            buffer.data = buffer.contiguous(memory_format=torch.channels_last)


def _config(recipe: Recipe, settings: DeepSpeed, world_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` is given: the recipe's words, and the user's beside them."""
    train = recipe.train
    user_config = without_auto(settings.config)
    ours = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.micro_batches // world_size,
        # ZeRO-0 is clipped by torch: DeepSpeed would round the norm to fp32.
        "gradient_clipping": (train.clip_norm or 0.0) if settings.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
    }
    # Reducing beside the backward pass has made ZeRO-2 differ from run to run. DeepSpeed's bucket
    # of 2 GB is for networks a hundred times as large; DDP's has 25 MB, and so has ours.
    zero = {"overlap_comm": False, "reduce_bucket_size": BUCKET}
    zero |= user_config.get("zero_optimization", {})
    rest = {key: value for key, value in user_config.items() if not is_off(value)}
    return rest | ours | {"zero_optimization": zero | {"stage": settings.zero_stage}}
