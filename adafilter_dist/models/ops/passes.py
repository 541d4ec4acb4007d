"""What computes the rest of a gated layer in training: Triton, compiled passes, or neither."""

from __future__ import annotations

import functools
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from adafilter_dist.models.ops import device_kind, passes_cpu
from adafilter_dist.models.ops.norm import Affine, Choosers, ChosenMoments, Gradients, Norm
from adafilter_dist.models.ops.triton_start import why_no_triton

Kernels = Literal["auto", "reference"]


class Passes(Protocol):
    """The passes of `passes_reference`, under the same names."""

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, (C,) each."""

    def chosen_moments(self, y: Tensor, choosers: Choosers) -> ChosenMoments:
        """Mean and variance over the images that chose each filter."""

    def coefficients(
        self, gates: Tensor, norm1: Norm, norm2: Norm
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Those of the blend, and 1 / standard deviation of both branches."""

    def blend(
        self,
        y1: Tensor,
        y2: Tensor,
        a1: Tensor,
        a2: Tensor,
        b: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """a1 y1 + a2 y2 + b (+ residual), perhaps ReLU, and its mean over pixels."""

    def sums(
        self,
        dout: Tensor,
        more: Tensor | None,
        out: Tensor | None,
        y1: Tensor,
        y2: Tensor,
        m1: Tensor,
        m2: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over pixels that the gradients of gates, gammas and betas are made of."""

    def gradients(
        self,
        gates: Tensor,
        s0: Tensor,
        s1: Tensor,
        s2: Tensor,
        first: Affine,
        second: Affine,
        pixels: int,
    ) -> Gradients:
        """All small gradients, and the coefficients of the spread."""

    def spread(
        self, *arguments: Tensor | None, want_residual: bool = False, stacked: bool = False
    ) -> Any:
        """(dy1, dy2, dz or None), or stacked (dy, dz or None)."""


def pick(y: Tensor) -> Passes | None:
    """The compiled passes, where they fuse the layer whose convolutions gave y; else None.

    Where a CPU's graph is being compiled the plain modules stand in it: the compiler fuses them.
    """
    if device_kind.on_gpu(y) or torch.compiler.is_compiling() or not passes_cpu.available(y):
        return None
    passes: Any = passes_cpu
    return cast(Passes, passes)


def whole_layer(y: Tensor) -> Any:
    """What computes all that follows the convolutions that gave y, for all micro-batches at once.

    `layer_triton` on a GPU where Triton works; None elsewhere.
    """
    return _layer_triton() if device_kind.on_gpu(y) else None


def layer_node(x: Tensor) -> Any:
    """`layer_node`, where a GPU computes x and Triton works; None elsewhere, and for a compiler."""
    if not device_kind.on_gpu(x) or torch.compiler.is_compiling() or _layer_triton() is None:
        return None
    return _layer_node()


@functools.cache
def _layer_node() -> Any:
    from adafilter_dist.models.ops import layer_node

    return layer_node


def name(device: torch.device, kernels: Kernels) -> str:
    """Which passes training on `device` takes: triton, native or reference."""
    if kernels == "reference":
        return "reference"
    if device.type == "cuda":
        return "triton" if _layer_triton() is not None else "reference"
    return "native" if passes_cpu.available(torch.empty(0, device=device)) else "reference"


@functools.cache
def _layer_triton() -> Any:
    if why_no_triton():
        return None
    try:
        from adafilter_dist.models.ops import layer_triton
    except ImportError:  # a build of torch without Triton
        return None
    return layer_triton
