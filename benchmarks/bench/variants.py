"""The networks that are compared: one backbone, fine-tuned plainly and with AdaFilter."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adafilter_dist.models.backbone.backbones import build_architecture
from adafilter_dist.models.backbone.head import find_head, replace_head
from adafilter_dist.models.backbone.zoo import zoo_of
from adafilter_dist.models.gating.batchnorm import has_activation
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.gating.selected_batchnorm import BatchNormKind
from bench.naive import naive
from bench.settings import Settings

PLAIN, FOLDED = "plain", "plain, folded"
NAIVE, REFERENCE, FUSED = "naive", "reference", "fused"
ALL = "fused, batchnorm=all"
SELECTED = "for_inference"
TRAINED = (PLAIN, NAIVE, ALL, REFERENCE, FUSED)
OF_ALL = (NAIVE, ALL)
"""Those whose BatchNorms take statistics of all images; the others' are of the choosers."""
KINDS: tuple[BatchNormKind, BatchNormKind] = ("selected", "all")
INFERRED = (PLAIN, FOLDED, NAIVE, SELECTED)


class Networks:
    """Makes each variant anew, on the settings' device, channels-last, all with one start.

    Weights are random. BatchNorm's running statistics are those of a batch of noise, and the
    fine-tuned branch differs from the frozen one as after some training, so that variants which
    should agree are seen to.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.missing: list[str] = []
        self.base = _base(settings)
        self._converted, self._of_all = (
            _moved(convert(copy.deepcopy(self.base), size=settings.size, batchnorm=kind), settings)
            for kind in KINDS
        )
        self.pairs = [(layer.name, layer.batchnorm) for layer in self._converted.report.gated]
        self.channels = [layer.out_channels for layer in self._converted.report.gated]
        self.hidden = self._converted.gate.settings.hidden

    def make(self, name: str) -> nn.Module:
        """The variant called `name`, in evaluation mode."""
        net: nn.Module = self._placed(self._make(name))
        return net

    def _make(self, name: str) -> Any:
        if name == PLAIN:
            return copy.deepcopy(self.base)
        if name == FOLDED:
            return folded(copy.deepcopy(self.base), self.pairs)
        if name == NAIVE:
            return naive(self._of_all)
        net = copy.deepcopy(self._of_all if name in OF_ALL else self._converted)
        if name == SELECTED:
            for_inference = self._of_package("adafilter_dist", "for_inference")
            return for_inference(self._placed(net).eval()) if for_inference else net
        set_kernels(net, "reference" if name == REFERENCE else "auto")
        return net

    def _of_package(self, module: str, name: str) -> Callable[..., Any] | None:
        function: Callable[..., Any] | None = getattr(importlib.import_module(module), name, None)
        line = f"This version has no {name}: the network as it is stands in for it."
        if function is None and line not in self.missing:
            self.missing.append(line)
        return function

    def _placed(self, net: Any) -> Any:
        net = net.to(self.settings.device)
        return net.to(memory_format=torch.channels_last)

    def images(self, batch: int, number: int = 0) -> Tensor:
        """Noise (batch, 3, size, size), channels-last, the same for all variants."""
        size = self.settings.size
        draws = torch.Generator().manual_seed(self.settings.seed + number)
        noise = torch.randn(batch, 3, size, size, generator=draws)
        # Pictures that differ in colour, so that the network's own gates differ too.
        noise += torch.randn(batch, 3, 1, 1, generator=draws)
        return noise.to(self.settings.device).contiguous(memory_format=torch.channels_last)

    def labels(self, batch: int) -> Tensor:
        """Classes (batch,)."""
        return torch.arange(batch, device=self.settings.device) % self.settings.classes


def _base(settings: Settings) -> nn.Module:
    net = build_architecture(settings.model, settings.size, settings.seed)
    replace_head(net, find_head(net), settings.classes, settings.seed)
    zoo_of(settings.model).switch_off_dropout(net)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        draws = torch.Generator().manual_seed(settings.seed + 1)
        net.train()(torch.randn(8, 3, settings.size, settings.size, generator=draws))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def _moved(net: AdaFilterNet, settings: Settings) -> AdaFilterNet:
    draws = torch.Generator().manual_seed(settings.seed + 2)
    with torch.no_grad():
        for layer in net.gated_layers.values():
            for weight in (layer.conv.weight, layer.bn1.weight):
                noise = torch.randn(weight.shape, generator=draws)
                weight += 0.1 * weight.abs().mean() * noise
    return net


def folded(net: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """`net` (used up) with every BatchNorm behind a convolution folded into its filters."""
    for conv_name, norm_name in pairs:
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        rest: nn.Module = nn.Identity()
        if has_activation(norm):
            rest = nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
        net.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        net.set_submodule(norm_name, rest.eval())
    return net
