"""A network for inference: of each pair of filters only the one that was chosen is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import AdaFilterNet, GatedNet
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.inference.choose_kernel import (
    NO_EPILOGUE,
    Epilogue,
    choose,
    convolve,
    same_filters_for_all,
)
from adafilter_dist.models.inference.filter_table import FilterTable, LayoutCache
from adafilter_dist.models.inference.fold_batchnorm import BareConv, fold, foldable
from adafilter_dist.models.inference.inference_gate import InferenceGate
from adafilter_dist.models.inference.kernel_filters import KernelFilterCache, KernelFilters
from adafilter_dist.models.inference.ordinary import ordinary_tensors
from adafilter_dist.models.inference.replayed_forward import ReplayedForward
from adafilter_dist.models.inference.row_cache import RowCache
from adafilter_dist.models.ops import device_kind
from adafilter_dist.models.ops.triton_start import why_no_triton


class SelectedConv(nn.Module):
    """A gated layer for inference: x (N, C_in, H, W) -> y (N, C_out, H', W').

    The BatchNorms are folded into the filters, and only what the gates choose is computed; gates
    that are neither 0 nor 1 (ablations) blend both. ``rows`` (T, KH, KW, C_in / groups) and
    ``bias`` (T,) hold the filters: row c is filter c's frozen one, ``tuned_row`` int64 (C_out,)
    says which is its tuned one; a settled filter has one row for both, whatever its gate says.
    """

    rows: Tensor
    bias: Tensor
    tuned_row: Tensor
    frozen_row: Tensor
    takes_residual = True

    def __init__(self, layer: GatedConvBN, gate: InferenceGate) -> None:
        super().__init__()
        folded = fold(layer)
        filters = layer.conv.out_channels
        self.conv = BareConv(layer.conv)
        self.register_buffer("rows", folded.weight.flatten(0, 1))
        self.register_buffer("bias", folded.bias.flatten())
        numbers = torch.arange(filters, device=self.rows.device)
        self.register_buffer("tuned_row", numbers + filters)
        self.register_buffer("frozen_row", numbers, persistent=False)
        self.index = layer.index
        # In a tuple, so that the shared gate does not become a submodule of every layer.
        self._gate = (gate,)
        self._row_cache, self._layout_cache = RowCache(), LayoutCache()
        self._kernel_filters = KernelFilterCache()
        self._paired = True
        self.training = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelectedConv:
        super()._apply(fn, recurse)
        # To channels-last rows look like images; they lie as kernels read them already.
        self.rows = self.rows.contiguous()
        return self

    def fix_gates(self, constant: Tensor) -> None:
        """Drop the other row of filters whose gate is taken to be constant.

        ``constant`` int8 (C_out,): 1 always tuned, 0 always frozen, -1 decided for each image.
        """
        filters = len(constant)
        constant = constant.to(self.rows.device)
        free = constant < 0
        one = torch.where(constant > 0, self.tuned_row, self.frozen_row)
        rows = torch.cat((one, self.tuned_row[free]))
        self.rows, self.bias = self.rows[rows], self.bias[rows]
        tuned = filters - 1 + free.cumsum(0)
        self.tuned_row = torch.where(free, tuned, self.frozen_row)
        self._paired = self._paired and bool(free.all())

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """As `GatedConvBN`: the layer, then + residual and ReLU if they were fused into it."""
        epilogue = Epilogue(residual, relu)
        gate = self._gate[0]
        if len(self.rows) == len(self.tuned_row) and not gate.observers:
            gate.advance_state(self.index, x)
            if torch.compiler.is_exporting():
                return epilogue(convolve(self.conv, x, self.rows, self.bias))
            return same_filters_for_all(self.conv, x, self._table, None, None, epilogue)
        gates = gate(self.index, x)
        if gates.dtype != torch.bool:  # overridden; on a GPU the host waits to see how
            bits = gates != 0
            if not torch.equal(bits.to(gates.dtype), gates):
                return epilogue(self._blended(x, gates))
            gates = bits
        if torch.compiler.is_exporting():  # no runtime has kernels that choose
            frozen, tuned = self._both(x)
            return epilogue(torch.where(gates[:, :, None, None], tuned, frozen))
        if device_kind.on_gpu(x):
            return self._on_cuda(x, gates, epilogue)
        return choose(self.conv, x, self._table, gates, epilogue)

    @property
    def _table(self) -> FilterTable:
        rows, bias = self.rows, self.bias
        return FilterTable(
            rows, bias, self.frozen_row, self.tuned_row, self._row_cache, self._layout_cache
        )

    def _on_cuda(self, x: Tensor, bits: Tensor, epilogue: Epilogue) -> Tensor:
        """The Triton kernel if it applies, else both branches; the host never waits.

        Under autocast the kernel multiplies in autocast's dtype, as a convolution would. It also
        gives the gate the mean of what it writes.
        """
        kernel = selected_kernel()
        conv, device, dtype = self.conv, x.device.type, x.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        elif dtype != self.rows.dtype:
            kernel = None
        differentiable = torch.is_grad_enabled() and x.requires_grad
        fits = conv.plain and conv.groups == 1 and dtype != torch.float64
        if kernel is None or not fits or differentiable:
            frozen, tuned = self._both(x)
            return epilogue(torch.where(bits[:, :, None, None], tuned, frozen))
        inside, left = epilogue.split((*bits.shape, *conv.output_size(x)), dtype)
        filters = self._filters(dtype)
        # A mean is remembered for a tensor that is unchanged, which is not known of those that
        # inference mode makes.
        with ordinary_tensors():
            y, mean = kernel(
                x.to(dtype).contiguous(memory_format=torch.channels_last),
                filters.rows,
                self.bias,
                bits,
                filters.pairs,
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                residual=inside.residual,
                relu=inside.relu,
                want_mean=left is NO_EPILOGUE and self._gate[0].reads_after(self.index),
            )
        if mean is not None:
            self._gate[0].remember_mean(y, mean)
        return left(y)

    def _filters(self, dtype: torch.dtype) -> KernelFilters:
        rows, frozen, tuned = self.rows, self.frozen_row, self.tuned_row
        if torch.compiler.is_compiling():  # which follows no caches
            return KernelFilters(
                rows.to(dtype), None if self._paired else torch.stack((frozen, tuned))
            )
        return self._kernel_filters.of(rows, frozen, tuned, dtype, paired=self._paired)

    def _blended(self, x: Tensor, gates: Tensor) -> Tensor:
        frozen, tuned = self._both(x)
        return torch.lerp(frozen, tuned, gates.to(tuned.dtype)[:, :, None, None])

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(BN2(S x), BN1(F x))."""
        rows, bias, filters = self.rows, self.bias, len(self.tuned_row)
        if self._paired and self.conv.groups == 1:
            both = convolve(self.conv, x, rows, bias)
            return both[:, :filters], both[:, filters:]
        tuned = self.tuned_row
        return (
            convolve(self.conv, x, rows[:filters], bias[:filters]),
            convolve(self.conv, x, rows[tuned], bias[tuned]),
        )


@cache
def selected_kernel() -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """The Triton kernel for CUDA, or None where Triton is not installed or does not work."""
    if why_no_triton():
        return None
    try:
        module = import_module("adafilter_dist.models.inference.selected_triton")
    except ImportError:
        return None
    kernel: Callable[..., tuple[Tensor, Tensor | None]] = module.selected_conv_mean
    return kernel


class InferenceNet(GatedNet):
    """What `for_inference` makes, for evaluation only.

    It has no BatchNorm to train and keeps what it gathered last, so it serves one thread at a
    time; `copy.deepcopy` gives another thread its own. On a GPU forwards that repeat are recorded
    as CUDA graphs and replayed, unless ``replay`` is False.
    """

    gate: InferenceGate
    replay = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.requires_grad_(False)
        super().train(False)
        self._replayed = ReplayedForward()

    def forward(self, images: Tensor) -> Tensor:
        if not self.replay or torch.compiler.is_compiling():
            return super().forward(images)
        return self._replayed(self, self.gate, images, super().forward)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InferenceNet:
        self._replayed.forget()
        super()._apply(fn, recurse)
        return self

    def load_state_dict(self, *words: Any, **more: Any) -> Any:
        """As that of every module."""
        self._replayed.forget()
        return super().load_state_dict(*words, **more)

    @property
    def gated_layers(self) -> dict[str, nn.Module]:
        """Path of the convolution in the source network -> `SelectedConv`.

        A layer whose convolution does not only pad its input (StdConv2d) is still a `GatedConvBN`.
        """
        return {name: self.backbone.get_submodule(name) for name in self.gate.names}

    def train(self, mode: bool = True) -> InferenceNet:
        """Refuses training mode: UserError."""
        if mode:
            raise UserError(
                "this network is for inference only: its BatchNorms are folded into the filters. "
                "Train the network it was made from, and call for_inference again"
            )
        super().train(False)
        return self


def for_inference(net: nn.Module, constant: Mapping[str, Tensor] | None = None) -> InferenceNet:
    """A copy of an AdaFilterNet that predicts the same at about the cost of the plain network.

    ``net`` is left as it is. Predictions are those of ``net.eval()`` up to rounding, which can flip
    a gate whose logit is almost 0. ``constant`` gives, by layer, gates to be taken for granted:
    int8 (C_out,), 1 tuned, 0 frozen, -1 decided for each image. Images are best in channels-last.
    Raises UserError for a network without gates.
    """
    if not isinstance(net, AdaFilterNet):
        raise UserError(
            f"for_inference: {type(net).__name__} has no gates to choose by; it takes an "
            "AdaFilterNet, from adafilter_dist.convert or adafilter_dist.load"
        )
    if net.gate.control is not None:
        raise UserError(
            f"for_inference: the gates are a control (method.gate.mode={net.gate.settings.mode}), "
            "which only the network itself computes; use it as it is"
        )
    gate = InferenceGate(net.gate)
    # What the copy finds here it takes instead of copying: layer by layer, not the network twice.
    memo: dict[int, Any] = {id(net.gate): gate}
    constant = constant or {}
    for name, layer in net.gated_layers.items():
        if foldable(layer.conv):
            selected = SelectedConv(layer, gate)
            if name in constant:
                selected.fix_gates(constant[name])
                gate.fix_gates(layer.index, constant[name])
            memo[id(layer)] = selected
    look_ahead = copy.deepcopy(net.look_ahead)
    fast = InferenceNet(copy.deepcopy(net.backbone, memo), gate, net.report, net.head, look_ahead)
    classes = getattr(net, "classes", None)
    if classes is not None:
        fast.classes = list(classes)  # type: ignore[assignment]
    return fast
