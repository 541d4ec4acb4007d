"""How many micro-batches share a forward under ``train.micro_batches_per_forward=auto``.

On a GPU as many as its memory holds, by two forwards and backwards of noise, of one micro-batch and
of two. Which number it is changes rounding alone, so it is part of a run's environment, and is kept
with the run: attempts in the same environment take the same number, others measure anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist

from adafilter_dist.distributed import World
from adafilter_dist.engine import Engine
from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.control_gates import any_domain
from adafilter_dist.models.gating.random_modules import find_random_modules
from adafilter_dist.models.ops.dtypes import autocast
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.system.disk import gib
from adafilter_dist.training.out_of_memory import is_out_of_memory
from adafilter_dist.training.seeding import seeded_draws

_USABLE = 0.93  # of what is free; the rest is lost in fragments and workspaces
_IN_RESERVE = 0.9  # of that: a run should not end by a guess
_BUFFERS = 2  # batches that lie on the device at once, see `data.loading.prefetch`
_SAME = ("device", "torch", "cudnn", "world_size", "compile", "engine")


class Meter(Protocol):
    """Measures the memory of a device."""

    def reset(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """The most bytes in use since then."""
        ...

    def available(self) -> int:
        """Bytes that this process could have in use."""
        ...


class CudaMeter:
    """What torch's allocator counts on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def available(self) -> int:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(_USABLE * (free + torch.cuda.memory_reserved(self._device)))


def with_forward_size(
    recipe: Recipe,
    trainable: TrainableModel,
    engine: Engine,
    size: int,
    world: World,
    kept: int | None = None,
    *,
    recorded: bool = False,
) -> tuple[Recipe, list[str]]:
    """``recipe`` with a number instead of auto, and lines on it; ``kept`` is the run's so far.

    ``recorded``: whether steps will be replayed, whose gradients lie apart from their sums. On a
    CPU it is 1: nothing is gained there. Collective.
    """
    if recipe.train.micro_batches_per_forward != "auto":
        return recipe, []
    line = ""
    if world.device.type != "cuda":
        together = 1
    elif kept is not None:
        together = kept
    else:
        draws = bool(find_random_modules(trainable.model, size))
        together, line = micro_batches_together(
            recipe,
            trainable,
            engine,
            size,
            world,
            CudaMeter(world.device),
            draws=draws,
            recorded=recorded,
        )
    train = recipe.train.model_copy(update={"micro_batches_per_forward": together})
    return recipe.model_copy(update={"train": train}), [line] if line else []


def micro_batches_together(
    recipe: Recipe,
    trainable: TrainableModel,
    engine: Engine,
    size: int,
    world: World,
    meter: Meter,
    *,
    draws: bool,
    recorded: bool = False,
) -> tuple[int, str]:
    """How many micro-batches each rank's forwards take, the same on all, and a line that says why.

    ``size``: of the pictures in pixels; ``draws``: whether the network draws random numbers for a
    whole forward. Collective.
    """
    train = recipe.train
    share = -(-train.micro_batches // world.world_size)
    if share == 1:
        return 1, ""
    if draws:
        return 1, _line(1, share, "the network draws random numbers for a whole forward")
    if isinstance(recipe.engine, DeepSpeed):
        return 1, _line(1, share, "with DeepSpeed it is not measured")
    most, reason = _most_that_fit(recipe, trainable, engine, size, world, meter, recorded)
    least = torch.tensor(min(max(most, 1), share), device=world.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    forwards = -(-share // int(least))
    together = -(-share // forwards)  # forwards of the same size, or nearly
    return together, _line(together, share, reason)


def _line(together: int, share: int, reason: str) -> str:
    return (
        f"train.micro_batches_per_forward=auto: {together} of a process's {share} micro-batches "
        f"share a forward ({reason})"
    )


def _most_that_fit(
    recipe: Recipe,
    trainable: TrainableModel,
    engine: Engine,
    size: int,
    world: World,
    meter: Meter,
    recorded: bool,
) -> tuple[int, str]:
    peaks: list[int] = []
    try:
        for count in (1, 2):
            peaks.append(peak_of_pass(recipe, trainable, engine, size, world, meter, count))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # it holds the activations
        if trainable.gates is not None:
            trainable.gates.discard()
        step_statistics.discard(engine.model)
        return 1, "two do not fit"
    width = torch.empty((), dtype=engine.dtype).element_size()
    each = max(1, peaks[1] - peaks[0])
    each += _BUFFERS * recipe.train.micro_batch * 3 * size * size * width
    # Gradients in DDP's buckets and the optimizer's states: made by the first step. A recording
    # has its own gradients and their sums.
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    later = (1 + 2 * recorded + recipe.optim.states) * sum(
        p.numel() * p.element_size() for p in trained
    )
    available = _IN_RESERVE * meter.available()
    most = int((available - later - (2 * peaks[0] - peaks[1])) // each)
    return most, f"{gib(each)} each, {gib(int(available))} in all; kept with the run"


def peak_of_pass(
    recipe: Recipe,
    trainable: TrainableModel,
    engine: Engine,
    size: int,
    world: World,
    meter: Meter,
    count: int,
) -> int:
    """Peak bytes of a forward and backward of ``count`` micro-batches of noise, not reduced.

    The first pass is not counted: in it cuDNN tries algorithms with larger workspaces than it then
    uses. DDP and its hooks take no part, nor does torch.compile, which needs less.
    """
    model, device, samples = engine.model, world.device, count * recipe.train.micro_batch
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((samples, 3, size, size), generator=generator, dtype=engine.dtype)
    images = images.to(device)
    if recipe.train.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(samples, dtype=torch.int64, device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for _ in range(2):
        meter.reset()
        with seeded_draws(0, 0, range(count), device), any_domain(model, samples):
            with autocast(device, recipe.train.precision):
                logits = model(images)
            loss = logits.to(engine.dtype).sum()
            loss = loss + trainable.penalty(labels).to(loss.dtype)
            torch.autograd.grad(loss, trained, allow_unused=True)
        step_statistics.discard(model)
    return meter.peak()


def kept_together(kept: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """The number in environment.json ``kept``, if it was measured in an environment like ``now``.

    ``now`` holds the names of `_SAME` (`describe_environment` has them).
    """
    together = kept.get("micro_batches_per_forward")
    if not isinstance(together, int) or any(kept.get(key) != now.get(key) for key in _SAME):
        return None
    return together
