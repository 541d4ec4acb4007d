"""What a training step and a prediction cost: operations and memory, measured on two images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from adafilter_dist.models.ops.dtypes import autocast, weights_dtype
from adafilter_dist.recipe import Recipe

# BatchNorm in training mode needs two.
_IMAGES = 2


_CONV_BACKWARD = torch.ops.aten.convolution_backward


def _backward_flops(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Operations of a convolution's gradients, each those of its forward.

    The counter's own formula forgets groups: a depthwise layer would count hundreds of times.
    """
    wanted = sum(bool(flag) for flag in rest[-1][:2])  # of input and weight
    return wanted * 2 * math.prod(grad) * math.prod(weight[1:])


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of convolutions and matrix products per image, activation bytes per image.

    ``forward`` is a prediction, ``step`` forward and backward. ``activations`` is what autograd
    keeps between them.
    """

    forward: int
    step: int
    activations: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a training process on one device, without the library's own workspace."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={_CONV_BACKWARD: _backward_flops})


def measure_costs(
    model: nn.Module, side: int, precision: str, penalty: Callable[[Tensor], Tensor] | None = None
) -> Costs:
    """Run ``model`` on two images of noise, (2, 3, side, side), once forward and once backward.

    Gradients are left as None; running statistics are not kept from noise if the model's
    BatchNorm gathers them per step, so use a model that is thrown away.
    """
    dtype = weights_dtype(precision)
    model = model.to(dtype)
    images = torch.randn(_IMAGES, 3, side, side, dtype=dtype)
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.eval()
    with torch.no_grad(), _counter() as prediction:
        model(images)
    model.train()
    with _counter() as step:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with autocast(torch.device("cpu"), precision):
                logits = model(images)
            labels = torch.zeros(_IMAGES, dtype=torch.int64)
            loss = functional.cross_entropy(logits.float(), labels)
            if penalty is not None:
                loss = loss + penalty(labels)
        loss.backward()
    model.zero_grad(set_to_none=True)
    return Costs(
        forward=prediction.get_total_flops() // (2 * _IMAGES),
        step=step.get_total_flops() // (2 * _IMAGES),
        activations=sum(kept.values()) // _IMAGES,
    )


def estimate_memory(model: nn.Module, costs: Costs, recipe: Recipe) -> Memory:
    """Memory of training ``model`` with the recipe's optimizer, EMA and micro-batch."""
    parameters = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return Memory(
        weights=parameters + sum(b.nbytes for b in model.buffers()),
        gradients=trained,
        optimizer=recipe.optim.states * trained,
        ema=trained if recipe.ema.decay else 0,
        activations=costs.activations * recipe.train.micro_batch,
    )
