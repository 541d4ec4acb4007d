"""Converts any CNN with Conv2d -> BatchNorm2d pairs into an AdaFilter network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.head import find_head
from adafilter_dist.models.gating.absorb_residual import absorb
from adafilter_dist.models.gating.batchnorm import has_activation, replace_batchnorm
from adafilter_dist.models.gating.control_gates import any_domain
from adafilter_dist.models.gating.conversion_report import (
    ConversionReport,
    GatedLayer,
    ParameterCounts,
)
from adafilter_dist.models.gating.equality import SourceNetwork
from adafilter_dist.models.gating.find_pairs import Pair, Pairs, find_pairs
from adafilter_dist.models.gating.freeze import freeze_ungated
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.gating.look_ahead import LookAhead, MeanColour, features_of
from adafilter_dist.models.gating.modes import trial_copy
from adafilter_dist.models.gating.selected_batchnorm import BatchNormKind
from adafilter_dist.models.gating.shared_batchnorm import SharedNormConvBN
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.recipe.sections.model import Gate


class GatedNet(nn.Module):
    """A backbone and what chooses its filters: images (N, 3, H, W) -> logits (N, classes).

    `head` is the classifier's path in `backbone`.
    """

    gate: Any  # RecurrentGate, or what stands for it in prediction

    def __init__(
        self,
        backbone: nn.Module,
        gate: nn.Module,
        report: ConversionReport,
        head: str | None,
        look_ahead: LookAhead | MeanColour | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.gate = gate
        self.look_ahead = look_ahead
        self.report = report
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        self.gate.start(features_of(images, self.look_ahead, self.gate.picture))
        try:
            logits: Tensor = self.backbone(images)
        finally:
            self.gate.stop()
        return logits


class AdaFilterNet(GatedNet):
    """A converted network, whose `gated_layers` are in order of execution."""

    gate: RecurrentGate

    @property
    def gated_layers(self) -> dict[str, GatedConvBN]:
        """Path of the convolution in the source network -> its gated layer."""
        layers: dict[str, GatedConvBN] = {}
        for name in self.gate.names:
            layer = self.backbone.get_submodule(name)
            assert isinstance(layer, GatedConvBN)
            layers[name] = layer
        return layers

    @property
    def batchnorm(self) -> BatchNormKind:
        """Whose statistics the BatchNorms of its gated layers take in training."""
        return next(iter(self.gated_layers.values())).batchnorm


def convert(
    model: nn.Module,
    *,
    size: int = 224,
    example_input: Tensor | None = None,
    gate: Gate | None = None,
    layers: str = ".*",
    ungated: Literal["train", "freeze"] = "train",
    batchnorm: BatchNormKind = "selected",
    head: str | None = None,
    seed: int = 0,
) -> AdaFilterNet:
    """Make `model` an AdaFilter network, reusing its modules: `model` itself is used up.

    A copy is run on `example_input` (N, C, H, W), or on noise (2, 3, size, size), in evaluation and
    in training mode, before and afterwards, to check that it still computes the same. Every Conv2d
    directly followed by a BatchNorm2d whose path matches `layers` (re.search) is gated; `ungated`
    says what happens to the other convolutions and BatchNorms; `batchnorm` of which images the two
    BatchNorms of a gated layer take their statistics in training, of those that chose the filter or
    of all, or "shared": there is one, behind the choice; `head` is the classifier's path (default
    the last nn.Linear); `seed` draws the gate's initial weights. `gate` is the recipe's section;
    its default here has no decision on pictures, for which losses must be measured during training
    (`adafilter_dist.decide`). Raises UserError if nothing can be gated or the network computes
    something else afterwards, naming the layer.
    """
    example = _example(model, size) if example_input is None else example_input
    source = trial_copy(model)
    pairs = find_pairs(source, example, layers)
    before = SourceNetwork.of(source, example, copied=source is not model)
    net = convert_pairs(
        model, pairs, gate=gate, ungated=ungated, batchnorm=batchnorm, head=head, seed=seed
    )
    with any_domain(net, len(example)):
        before.check(net, pairs)
    return net


def convert_pairs(
    model: nn.Module,
    pairs: Pairs,
    *,
    gate: Gate | None = None,
    ungated: Literal["train", "freeze"] = "train",
    batchnorm: BatchNormKind = "selected",
    head: str | None = None,
    seed: int = 0,
) -> AdaFilterNet:
    """`convert` for pairs that are known already: nothing is traced, run or checked."""
    reference = next(model.parameters())
    gate = gate or Gate(decision="filter")
    head = head or _head_or_none(model)
    # Before any module is replaced: the picture's decision sees the network as it was pre-trained.
    look_ahead = _look_ahead(model, pairs, gate, head) if gate.decides_pictures else None
    described = tuple(_describe(model, pair) for pair in pairs.gated)
    recurrent = RecurrentGate(
        [(layer.name, layer.in_channels, layer.out_channels) for layer in described],
        gate,
        features=None if look_ahead is None else look_ahead.width,
        generator=torch.Generator().manual_seed(seed),
        device=reference.device,
        dtype=accumulation_dtype(reference.dtype),
    )
    for index, pair in enumerate(pairs.gated):
        _gate_pair(model, pair, recurrent, index, batchnorm)
    replace_batchnorm(model)
    absorb(model)
    if ungated == "freeze":
        freeze_ungated(model, pairs)
    recurrent.train(model.training)
    recurrent.requires_grad_(gate.is_trained)
    counts = _count(model, recurrent, head)
    conv_weights = sum(layer.weights for layer in described)
    left_weights = sum(_conv(model, name).weight.numel() for name, _ in pairs.left_out)
    share = conv_weights / (conv_weights + left_weights)
    report = ConversionReport(described, pairs.left_out, pairs.found_by, share, counts)
    net = AdaFilterNet(model, recurrent, report, head, look_ahead)
    net.training = model.training
    return net


def _look_ahead(
    model: nn.Module, pairs: Pairs, gate: Gate, head: str | None
) -> LookAhead | MeanColour:
    """A frozen copy of the layers up to the last one whose output the decision sees."""
    if not gate.look_ahead:
        return MeanColour()
    count = max(1, round(gate.look_ahead * len(pairs.gated)))
    behind_last = [name for pair in pairs.gated[count:] for name in (pair.conv, pair.batchnorm)]
    unused = [*behind_last, *([head] if head else [])]
    return LookAhead(model, [pair.batchnorm for pair in pairs.gated[:count]], unused)


def _gate_pair(
    model: nn.Module, pair: Pair, gate: RecurrentGate, index: int, batchnorm: BatchNormKind
) -> None:
    norm = model.get_submodule(pair.batchnorm)
    assert isinstance(norm, nn.BatchNorm2d)
    conv = _conv(model, pair.conv)
    if batchnorm == "shared":
        layer: GatedConvBN = SharedNormConvBN(conv, norm, gate, index)
    else:
        layer = GatedConvBN(conv, norm, gate, index, batchnorm)
    model.set_submodule(pair.conv, layer.train(norm.training))
    rest: nn.Module = nn.Identity()
    if has_activation(norm):
        rest = nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    model.set_submodule(pair.batchnorm, rest.train(norm.training))


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _describe(model: nn.Module, pair: Pair) -> GatedLayer:
    conv = _conv(model, pair.conv)
    return GatedLayer(
        name=pair.conv,
        batchnorm=pair.batchnorm,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=(conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        groups=conv.groups,
        weights=conv.weight.numel(),
    )


def _head_or_none(model: nn.Module) -> str | None:
    try:
        return find_head(model)
    except UserError:
        return None


def _count(model: nn.Module, gate: RecurrentGate, head: str | None) -> ParameterCounts:
    def numbers(modules: Sequence[nn.Module]) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    layers = [module for module in model.modules() if isinstance(module, GatedConvBN)]
    tuned = numbers([layer.conv for layer in layers])
    norms = numbers([m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)])
    classifier = numbers([model.get_submodule(head)]) if head else 0
    return ParameterCounts(
        frozen=tuned,  # the twins have the same shapes
        tuned=tuned,
        gate=numbers([gate]),
        batchnorm=norms,
        head=classifier,
        other=numbers([model]) - tuned - norms - classifier,
        still=sum(p.numel() for p in model.parameters() if not p.requires_grad),
    )


def _example(model: nn.Module, size: int) -> Tensor:
    reference = next(model.parameters())
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(reference.device, reference.dtype)
