"""What follows a gated layer's convolutions in a few Triton kernels, for all micro-batches at once.

Forward: moments of both branches, their statistics, the choice. Backward: the sums, the small
gradients, those of both convolutions' outputs. Importing this needs triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adafilter_dist.models.ops import layer_operators
from adafilter_dist.models.ops.passes_reference import cast

ALL, CHOSEN, FIXED = 0, 1, 2


class BranchNorm(NamedTuple):
    """A branch's BatchNorm: whose statistics it takes (ALL, CHOSEN, FIXED), and its tensors.

    Affine pair and running statistics (C,); ALL needs no running ones. To `sums` are added, for
    each micro-batch, mean and unbiased variance (C,), for CHOSEN both times the share of images
    that chose the filter, and that share, and at the end the number of micro-batches.
    """

    kind: int
    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    sums: Tensor
    eps: float

    def tensors(self) -> tuple[Tensor, ...]:
        """As the kernel takes them."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            mean = var = self.weight
        return self.weight, self.bias, mean, var


def gated_layer(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norm1: BranchNorm,
    norm2: BranchNorm,
    groups: int,
    prior: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """G BN1(y1) + (1 - G) BN2(y2) (+ residual), perhaps ReLU, of y (N, C, H, W) and G (N, C).

    Returns that and its mean over the pixels (N, C). Without y2, y1 (N, 2C, H, W) holds the
    channels of both, and so does its gradient. The images are `groups` micro-batches, one after
    the other. Differentiable once in all but the statistics. `prior`: see `Choosers`.
    """
    affine = (norm1.weight, norm1.bias, norm2.weight, norm2.bias)
    kinds = [norm1.kind, norm2.kind]
    norms = [*norm1.tensors(), *norm2.tensors()]
    of_rows = (norms, norm1.sums, norm2.sums, kinds, [norm1.eps, norm2.eps], groups, prior)
    rows = None
    if torch.compiler.is_compiling():
        # A compiler's Function writes to nothing: the sums are added to outside of it.
        with torch.no_grad():
            rows = layer_operators.statistics(y1, y2, gates, *of_rows)
    rows_or_how = of_rows if rows is None else rows
    out, mean = _GatedLayer.apply(
        y1, y2, gates, *affine, residual, rows_or_how, kinds, groups, relu
    )
    return out, mean


class _GatedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y1: Tensor,
        y2: Tensor | None,
        gates: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        residual: Tensor | None,
        rows_or_how: Tensor | tuple[Any, ...],
        kinds: list[int],
        groups: int,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        if isinstance(rows_or_how, tuple):
            made = layer_operators.forward(y1, y2, gates, *rows_or_how, residual, relu)
            rows, out, mean, act = made
        else:
            rows = rows_or_how
            out, mean = layer_operators.choose(y1, y2, gates, rows, residual, groups, relu)
            act = out.detach()
        kept = act if relu else None
        ctx.save_for_backward(y1, y2, kept, gates, weight1, bias1, weight2, bias2, rows)
        ctx.how = (kinds, groups)
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dmean: Tensor | None) -> tuple[Any, ...]:
        y1, y2, out, gates, *affine, rows = ctx.saved_tensors
        if dout is None:
            like = y1 if y2 is not None else y1[:, : gates.shape[1]]
            dout = torch.zeros_like(like)
        want_residual = ctx.needs_input_grad[7]
        kinds, groups = ctx.how
        results = layer_operators.layer_gradients(
            dout, dmean, out, y1, y2, gates, affine, rows, kinds, groups, want_residual
        )
        dgates, of_affine, dy1 = results[0], results[1:5], results[5]
        dy2 = None if y2 is None else results[6]
        dz = results[-1] if want_residual else None
        small = [cast(grad, of.dtype) for grad, of in zip(of_affine, affine, strict=True)]
        return dy1, dy2, cast(dgates, gates.dtype), *small, dz, None, None, None, None
