"""The gated layer: fine-tuned and frozen filters, a BatchNorm for each, a bit to choose."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adafilter_dist.models.gating import micro_batches
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.gating.selected_batchnorm import (
    PRIOR,
    BatchNormKind,
    SelectedBatchNorm2d,
)
from adafilter_dist.models.ops.gate_step import Made
from adafilter_dist.models.ops.gated_norm import gated_norm
from adafilter_dist.models.ops.passes import Kernels, Passes, layer_node, pick, whole_layer
from adafilter_dist.models.ops.selected_filters import selected_filters
from adafilter_dist.models.ops.stacked_conv import (
    can_stack,
    compute_dtype,
    stacked_conv,
    stacking_is_faster,
)


class GatedConvBN(nn.Module):
    """y = G * BN1(F x) + (1 - G) * BN2(S x), with G one bit per image and filter.

    F is `conv` (trained), S its pre-trained twin held in buffers, so that no optimizer and no
    weight decay can reach it. x (N, C_in, H, W) -> y (N, C_out, H', W'). In training a BatchNorm
    takes its statistics from the images that chose the filter, or, ``batchnorm="all"``, from all.
    """

    frozen_weight: Tensor
    frozen_bias: Tensor | None
    kernels: Kernels = "auto"
    takes_residual = True
    """Its forward can also add the block's `residual` and apply its `relu`."""

    def __init__(
        self,
        conv: nn.Conv2d,
        source: nn.BatchNorm2d,
        gate: RecurrentGate,
        index: int,
        batchnorm: BatchNormKind = "selected",
    ) -> None:
        super().__init__()
        self.conv = conv
        for parameter in conv.parameters():
            parameter.requires_grad_(True)
        self.register_buffer("frozen_weight", conv.weight.detach().clone())
        bias = None if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("frozen_bias", bias)
        kind = SelectedBatchNorm2d if batchnorm == "selected" else MicroBatchNorm2d
        self.bn1, self.bn2 = kind.from_batchnorm(source), kind.from_batchnorm(source)
        if isinstance(self.bn2, SelectedBatchNorm2d):
            self.bn2.tuned = False
        self.batchnorm: BatchNormKind = batchnorm
        self.index = index
        # In a tuple, so that the shared gate does not become a submodule of every layer.
        self._gate = (gate,)

    @property
    def norms(self) -> tuple[MicroBatchNorm2d, MicroBatchNorm2d]:
        """The BatchNorms of the tuned and of the frozen branch."""
        return self.bn1, self.bn2

    def gates(self, x: Tensor) -> Tensor:
        """The next step of the shared gate: (N, C_out), in the gate's own dtype."""
        gates: Tensor = self._gate[0](self.index, x)
        return gates

    def tuned(self, x: Tensor) -> Tensor:
        """BN1(F x)."""
        y: Tensor = self.norms[0](self.conv(x))
        return y

    def frozen(self, x: Tensor) -> Tensor:
        """BN2(S x)."""
        y: Tensor = self.norms[1](self._frozen_conv(x))
        return y

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """The layer, and what followed it in the block's code: + residual, then ReLU."""
        if self.training and (whole := self._as_one_node(x, residual, relu)) is not None:
            return whole
        y1, y2, gates = self._convolve(x, self.gates(x))
        fuses = self._fuses(y1, gates, residual)
        if fuses and (layer := whole_layer(y1)) is not None:
            out, mean = self._fused_whole(layer, y1, y2, gates, residual, relu)
            self._gate[0].remember_mean(out, mean)
            return out
        # Without y2 both lie in y1, stacked.
        tuned, frozen = y1.chunk(2, 1) if y2 is None else (y1, y2)
        if fuses and (passes := pick(tuned)) is not None:
            if micro_batches.current.count == 1:
                out, mean = self._fused(passes, y1, y2, gates, residual, relu)
            else:
                split = micro_batches.current.split_or_none
                parts = zip(split(y1), split(y2), split(gates), split(residual), strict=True)
                made = [self._fused(passes, *part, relu) for part in parts]
                out, mean = (torch.cat(each) for each in zip(*made, strict=True))
            self._gate[0].remember_mean(out, mean)
            return out
        tuned, frozen = self.bn1(tuned, gates), self.bn2(frozen, gates)
        # lerp is exact at 0 and 1 and where both branches agree; fractions are used in ablations.
        out = torch.lerp(frozen, tuned, gates.to(tuned.dtype)[:, :, None, None])
        if residual is not None:
            out = out + residual
        return out.relu_() if relu else out

    def _as_one_node(self, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor | None:
        """The whole layer as one node of autograd's graph; None where that cannot be.

        On a GPU with Triton, from a forward's second layer on, and once the gate knows the layers
        whose filters it stacks.
        """
        node = layer_node(x) if self.kernels == "auto" else None
        if node is None:
            return None
        # Dictionaries: asking a module for an attribute takes ten times as long.
        modules = self._modules
        conv, bn1, bn2 = cast("Any", (modules["conv"], modules["bn1"], modules["bn2"]))
        if bn1.frozen or bn2.frozen or conv._parameters["bias"] is not None or not can_stack(conv):
            return None
        gate, weight, dtype = self._gate[0], conv._parameters["weight"], compute_dtype(x)
        filters = gate.filters.of(self.index, weight, self.frozen_weight, dtype)
        count = micro_batches.current.count
        if filters is None or len(x) % count or not self._adds(conv, x, residual, dtype):
            return None
        step = gate.next_step(self.index, x)
        if step is None:
            return None
        how = (list(conv.stride), list(conv.padding), list(conv.dilation))
        made: Made = node.gated_layer(
            x if x.dtype == dtype else x.to(dtype),
            step,
            self.index,
            node.Convolution(weight, filters, *how),
            (_branch_norm(node, bn1), _branch_norm(node, bn2)),
            count,
            PRIOR,
            residual,
            relu,
        )
        gate.note_step(self.index, made)
        return made.out

    @staticmethod
    def _adds(conv: nn.Conv2d, x: Tensor, residual: Tensor | None, dtype: torch.dtype) -> bool:
        """Whether the residual, if any, is like the output of the convolution."""
        if residual is None:
            return True
        (height, width), (k1, k2), (s1, s2) = x.shape[2:], conv.kernel_size, conv.stride
        (p1, p2), (d1, d2) = cast("tuple[int, int]", conv.padding), conv.dilation
        made = (
            (height + 2 * p1 - d1 * (k1 - 1) - 1) // s1 + 1,
            (width + 2 * p2 - d2 * (k2 - 1) - 1) // s2 + 1,
        )
        return residual.dtype == dtype and residual.shape == (len(x), conv.out_channels, *made)

    def _convolve(self, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        if self.training:
            modules, buffers = self._modules, self._buffers
            conv: Any = modules["conv"]
            if modules["bn1"].frozen or modules["bn2"].frozen:  # type: ignore[union-attr]
                return self._convolve_selected(x, gates)
            if self.kernels == "auto" and can_stack(conv) and stacking_is_faster(conv, x):
                frozen, frozen_bias = self.frozen_weight, buffers["frozen_bias"]
                weight = conv._parameters["weight"]
                filters = self._gate[0].filters.of(self.index, weight, frozen, compute_dtype(x))
                both = stacked_conv(conv, x, frozen, frozen_bias, filters)
                return both, None, gates
        return self.conv(x), self._frozen_conv(x), gates

    def _fused(
        self,
        passes: Passes,
        y1: Tensor,
        y2: Tensor | None,
        gates: Tensor,
        residual: Tensor | None,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        """What follows the convolutions, for one micro-batch, and its mean over pixels."""
        tuned, frozen = y1.chunk(2, 1) if y2 is None else (y1, y2)
        norms = self.bn1.norm_of(tuned, passes, gates), self.bn2.norm_of(frozen, passes, gates)
        return gated_norm(passes, y1, y2, gates, *norms, residual, relu)

    def _fused_whole(
        self,
        layer: Any,
        y1: Tensor,
        y2: Tensor | None,
        gates: Tensor,
        residual: Tensor | None,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        """The same for all micro-batches of the forward at once."""
        count = micro_batches.current.count
        if len(gates) % count:
            micro_batches.current.split(gates)  # which says what is wrong
        norms = self._modules
        first, second = _branch_norm(layer, norms["bn1"]), _branch_norm(layer, norms["bn2"])
        out, mean = layer.gated_layer(y1, y2, gates, first, second, count, PRIOR, residual, relu)
        return out, mean

    def _fuses(self, y1: Tensor, gates: Tensor, residual: Tensor | None) -> bool:
        """Whether the rest of the layer may be fused: in training, where everything fits."""
        if not self.training or self.kernels == "reference":
            return False
        shape = (*gates.shape, *y1.shape[2:])
        return residual is None or (residual.shape == shape and residual.dtype == y1.dtype)

    def _frozen_conv(self, x: Tensor) -> Tensor:
        if type(self.conv) is nn.Conv2d:
            return self.conv._conv_forward(x, self.frozen_weight, self.frozen_bias)
        # A subclass may pad or standardise its filters first.
        y: Tensor = functional_call(_Unhooked(self.conv), self._frozen_state(), x)
        return y

    def _convolve_selected(self, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both convolutions' outputs and the gates, without filters that no image selects.

        Only where a branch's BatchNorm statistics are fixed: otherwise they need every filter's
        output. The gates of a filter that is left out get no gradient from the loss, because there
        is no second output to compare with.
        """
        plain = type(self.conv) is nn.Conv2d and self.conv.groups == 1
        everyone = torch.ones_like(gates[0], dtype=torch.bool)
        tuned = (gates != 0).any(0) if plain and self.bn1.frozen else everyone
        frozen = (gates != 1).any(0) if plain and self.bn2.frozen else everyone
        gates = torch.where(tuned & frozen, gates, gates.detach())
        if not plain:
            return self.conv(x), self._frozen_conv(x), gates
        y1 = selected_filters(self.conv, x, self.conv.weight, self.conv.bias, tuned)
        y2 = selected_filters(self.conv, x, self.frozen_weight, self.frozen_bias, frozen)
        return y1, y2, gates

    def _frozen_state(self) -> dict[str, Tensor]:
        state = {"conv.weight": self.frozen_weight}
        if self.frozen_bias is not None:
            state["conv.bias"] = self.frozen_bias
        return state


def _branch_norm(layer: Any, norm: Any) -> Any:
    """A BatchNorm in training as `layer_triton` takes it."""
    # Its dictionaries: asking a module for an attribute takes ten times as long.
    parameters, buffers = norm._parameters, norm._buffers
    weight, bias = parameters["weight"], parameters["bias"]
    if weight is None or bias is None:
        weight, bias = norm.affine_pair()
    mean, var = buffers["running_mean"], buffers["running_var"]
    kind = _kind(layer, norm)
    return layer.BranchNorm(kind, weight, bias, mean, var, buffers["step_sums"], norm.eps)


def _kind(layer: Any, norm: MicroBatchNorm2d) -> int:
    """Whose statistics it takes in training, in the words of `layer_triton`."""
    if norm.frozen or not norm.training:
        kind = layer.FIXED
    else:
        kind = layer.CHOSEN if isinstance(norm, SelectedBatchNorm2d) else layer.ALL
    return int(kind)


class _Unhooked(nn.Module):
    """A convolution without its hooks: under ZeRO-3 they would fetch the trained weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.forward(x)


def set_kernels(net: nn.Module, kernels: Kernels) -> None:
    """How the gated layers of `net` train: fused where there are kernels, or as plain modules."""
    for module in net.modules():
        if isinstance(module, GatedConvBN):
            module.kernels = kernels


def fix_statistics(net: nn.Module, branches: Literal["none", "frozen", "both"]) -> None:
    """Which branches of the gated layers normalise by their running statistics in training too."""
    for module in net.modules():
        if isinstance(module, GatedConvBN):
            tuned, frozen = module.norms
            frozen.frozen = branches != "none"
            tuned.frozen = branches == "both"
