"""Auto-RGN: each layer's learning rate follows its relative gradient norm, measured each epoch.

Lee, Chen et al., Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, ICLR 2023. The
relative gradient norm of a layer is ||g|| / ||w||, of its weight and bias together. The layer's
rate is the recipe's times its norm over the largest of all layers, so between 0 and 1 times the
recipe's.

Read in main.py of the authors (anniesch/surgical-finetuning): the norms are measured at the start
of each epoch, on five batches of the training set; scaling is by the largest alone; BatchNorm's
weights and biases are not trained (running statistics move). Different there: weight and bias are
layers of their own, which a new head does not allow (its bias starts at 0, so that its norm would
be infinite, then the largest by far), and Adam begins anew with each epoch. Here the norms are
those of the epoch's first step, on its global batch, and the optimizer goes on. A follow-up
(fengledl/Adaptive-Fine-Tuning-Algorithm-Based-on-Parameter-Contribution, Auto-RGN.py) takes the
gradient of one batch, trains BatchNorm too and scales from the smallest to the largest, weights and
biases apart: scaling=min_max and train_batchnorm=true are near it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adafilter_dist.methods.base import TrainableModel, UpdateRule, groups_of
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import AutoRGN


class EpochScales(nn.Module):
    """The factor on each layer's rate, and the epoch that it was measured in; -1 before any.

    Buffers, so that a run that is resumed within an epoch goes on with the factors of the epoch.
    """

    factors: Tensor
    epoch: Tensor

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.register_buffer("factors", torch.ones(layers))
        self.register_buffer("epoch", torch.tensor(-1))


class RelativeGradientRates(UpdateRule):
    """Sets the rate of every group in each step; a group holds one tensor of one of `layers`."""

    def __init__(
        self, layers: list[list[nn.Parameter]], scales: EpochScales, *, from_smallest: bool
    ) -> None:
        self._layers = layers
        self._scales = scales
        self._from_smallest = from_smallest
        self._epoch = 0
        # What the buffers hold, on the host: reading them in every step would wait for the device.
        self._known: tuple[int, list[float]] | None = None

    def begin(self, epoch: int) -> None:
        """Remember the epoch of the coming step."""
        self._epoch = epoch

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure if this is an epoch's first update; multiply the rates."""
        if self._known is None or self._known[0] != self._epoch:
            if int(self._scales.epoch) != self._epoch:
                self._scales.factors.copy_(self._measured())
                self._scales.epoch.fill_(self._epoch)
            self._known = self._epoch, self._scales.factors.tolist()
        factors = {
            id(parameter): factor
            for layer, factor in zip(self._layers, self._known[1], strict=True)
            for parameter in layer
        }
        for group in optimizer.param_groups:
            (parameter,) = group["params"]
            group["lr"] *= factors[id(parameter)]

    def _measured(self) -> Tensor:
        gradients = [[p.grad for p in layer if p.grad is not None] for layer in self._layers]
        return scaled(
            torch.stack([_norm(tensors, like=self._scales.factors) for tensors in gradients]),
            torch.stack([_norm(layer, like=self._scales.factors) for layer in self._layers]),
            from_smallest=self._from_smallest,
        )


def _norm(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Of all of them together."""
    if not tensors:
        return like.new_zeros(())
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).norm()


def scaled(gradients: Tensor, weights: Tensor, *, from_smallest: bool) -> Tensor:
    """Factors (n,) in [0, 1] from norms (n,) of gradients and weights.

    Weights of norm 0 have no relative norm: their factor is 1, and they do not count among the
    others. All factors are 1 where no relative norm differs from the lower end.
    """
    measured = weights > 0
    relative = gradients / torch.where(measured, weights, torch.ones_like(weights))
    known = relative[measured]
    if len(known) == 0:
        return torch.ones_like(relative)
    lower = known.min() if from_smallest else known.new_zeros(())
    span = known.max() - lower
    factors = (relative - lower) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(measured & (span > 0), factors, torch.ones_like(factors))


def build_auto_rgn(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning with one group a tensor; engines refuse its rule under ZeRO 1 to 3."""
    method = recipe.method
    assert isinstance(method, AutoRGN)
    trainable = build_finetune(backbone, recipe)
    model = trainable.model
    if not method.train_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
    trainable.groups = [
        group | {"name": f"{group['name']}_{number:03d}", "params": [parameter]}
        for group in groups_of(model, recipe.optim, trainable.classifier)
        for number, parameter in enumerate(group["params"])
    ]
    own = [[*module.parameters(recurse=False)] for module in model.modules()]
    trained = [[p for p in parameters if p.requires_grad] for parameters in own]
    layers = [parameters for parameters in trained if parameters]
    scales = EpochScales(len(layers))
    trainable.keep_beside("epoch_scales", scales)
    trainable.rule = RelativeGradientRates(
        layers, scales, from_smallest=method.scaling == "min_max"
    )
    return trainable
