"""What the pre-trained network sees in a picture, for the gate's decision on the whole picture."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.picture_decision import PictureDecision


class _Reached(Exception):
    """Ends a forward behind the last layer whose output is read."""


class LookAhead(nn.Module):
    """The first layers of the pre-trained network, frozen: images -> features (N, D).

    The features are the means over pixels of the outputs of the BatchNorms `batchnorms` (paths in
    order of execution), in fp32 or wider. Everything is a buffer, so that no optimizer and no
    engine takes it for something to train, and always in evaluation mode. Nothing behind the last
    BatchNorm is computed.
    """

    def __init__(self, source: nn.Module, batchnorms: Sequence[str], unused: Sequence[str]) -> None:
        """Copy `source`; the modules `unused` lie behind the last BatchNorm and are left out."""
        super().__init__()
        try:
            # Autograd's tensors do not copy; pre-trained parameters are leaves and do.
            self.network = copy.deepcopy(source)
        except Exception as error:  # whatever a module's attributes raise
            raise UserError(
                f"method.gate.decision=picture needs a copy of the pre-trained network, which "
                f"cannot be copied ({type(error).__name__}: {error}); use "
                "method.gate.decision=filter"
            ) from error
        for name in unused:
            self.network.set_submodule(name, nn.Identity())
        self.batchnorms = tuple(batchnorms)
        self.width = 0
        for name in batchnorms:
            batchnorm = self.network.get_submodule(name)
            assert isinstance(batchnorm, nn.BatchNorm2d)
            self.width += batchnorm.num_features
        _make_buffers(self.network)
        self.train(False)

    def train(self, mode: bool = True) -> LookAhead:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        means: list[Tensor] = []

        def read(module: nn.Module, inputs: Any, output: Tensor) -> None:
            wide = torch.float64 if output.dtype == torch.float64 else torch.float32
            means.append(output.mean((2, 3), dtype=wide))
            if len(means) == len(self.batchnorms):
                raise _Reached

        handles = [
            self.network.get_submodule(name).register_forward_hook(read) for name in self.batchnorms
        ]
        try:
            self.network(images)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat(means, 1)


class MeanColour(nn.Module):
    """An ablation of `LookAhead`: all that a gate without it knows of a picture beforehand.

    images (N, 3, H, W) -> their means over pixels, normalised over the channels (N, 3), in fp32 or
    wider.
    """

    width = 3

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        wide = torch.float64 if images.dtype == torch.float64 else torch.float32
        means = images.mean((2, 3), dtype=wide)
        return functional.layer_norm(means, means.shape[1:])


def _make_buffers(network: nn.Module) -> None:
    """Turn every parameter into a buffer of the same name."""
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, None if parameter is None else parameter.detach())


def features_of(
    images: Tensor, look_ahead: LookAhead | MeanColour | None, picture: PictureDecision | None
) -> Tensor | None:
    """What the decision on each of the images sees; None where it does not depend on them."""
    if look_ahead is None or picture is None or not picture.needs_features():
        return None
    features: Tensor = look_ahead(images)
    return features
