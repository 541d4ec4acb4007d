"""What stands between the passes of a gated layer, as one Triton kernel before and one behind.

In plain PyTorch these are some fifty operations a layer, whose launches take longer than they do.
Importing this needs triton.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from adafilter_dist.models.ops import coefficients_kernels as kernels
from adafilter_dist.models.ops.norm import Affine, Gradients, Norm
from adafilter_dist.models.ops.tiles import accumulation, cdiv

_BLOCK_N, _BLOCK_C = 16, 64


def coefficients(
    gates: Tensor, norm1: Norm, norm2: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """a1, a2, b (N, C) of `blend`, and 1 / standard deviation of both branches (C,)."""
    first, second = ([*norm.affine(), norm.mean, norm.var] for norm in (norm1, norm2))
    abc, rstd = _coefficients(gates, first, second, norm1.eps, norm2.eps)
    a1, a2, b = abc.unbind()
    rstd1, rstd2 = rstd.unbind()
    return a1, a2, b, rstd1, rstd2


def gradients(
    gates: Tensor,
    s0: Tensor,
    s1: Tensor,
    s2: Tensor,
    first: Affine,
    second: Affine,
    pixels: int,
) -> Gradients:
    """All small gradients, and the coefficients of `spread`, from `sums`."""
    tensors = [gates, s0, s1, s2]
    tensors += [first.weight, first.bias, first.rstd, second.weight, second.bias, second.rstd]
    totals = (first.total, second.total)
    by_image, by_channel = _gradients(tensors, *totals, pixels, first.batch, second.batch)
    dgates, p1, q1, r1, p2, q2, r2 = by_image.unbind()
    dweight1, dbias1, dweight2, dbias2 = by_channel.unbind()
    return Gradients(dgates, dweight1, dbias1, dweight2, dbias2, (p1, q1, r1), (p2, q2, r2))


@custom_op("adafilter::coefficients", mutates_args=())
def _coefficients(
    gates: Tensor, first: list[Tensor], second: list[Tensor], eps1: float, eps2: float
) -> tuple[Tensor, Tensor]:
    images, channels = gates.shape
    wide, accumulate = accumulation(first[2].dtype)
    abc = torch.empty(3, images, channels, dtype=wide, device=gates.device)
    rstd = torch.empty(2, channels, dtype=wide, device=gates.device)
    with torch.cuda.device_of(gates):
        kernels.coefficients_kernel[(cdiv(channels, _BLOCK_C),)](
            *(each.contiguous() for each in (gates, *first, *second)),
            abc,
            rstd,
            images,
            channels,
            EPS1=eps1,
            EPS2=eps2,
            ACC=accumulate,
            BLOCK_N=_BLOCK_N,
            BLOCK_C=_BLOCK_C,
        )
    return abc, rstd


@_coefficients.register_fake
def _(
    gates: Tensor, first: list[Tensor], second: list[Tensor], eps1: float, eps2: float
) -> tuple[Tensor, Tensor]:
    wide, _ = accumulation(first[2].dtype)
    return gates.new_empty(3, *gates.shape, dtype=wide), gates.new_empty(
        2, gates.shape[1], dtype=wide
    )


@custom_op("adafilter::gradients", mutates_args=())
def _gradients(
    tensors: list[Tensor],
    total1: Tensor | None,
    total2: Tensor | None,
    pixels: int,
    batch1: bool,
    batch2: bool,
) -> tuple[Tensor, Tensor]:
    images, channels = tensors[0].shape
    wide, accumulate = accumulation(tensors[1].dtype)
    by_image = torch.empty(7, images, channels, dtype=wide, device=tensors[0].device)
    by_channel = torch.empty(4, channels, dtype=wide, device=tensors[0].device)
    with torch.cuda.device_of(tensors[0]):
        kernels.gradients_kernel[(cdiv(channels, _BLOCK_C),)](
            *(each.contiguous() for each in tensors),
            *(tensors[0] if total is None else total.contiguous() for total in (total1, total2)),
            by_image,
            by_channel,
            images,
            channels,
            pixels,
            BATCH1=batch1,
            BATCH2=batch2,
            TOTAL1=total1 is not None,
            TOTAL2=total2 is not None,
            ACC=accumulate,
            BLOCK_N=_BLOCK_N,
            BLOCK_C=_BLOCK_C,
        )
    return by_image, by_channel


@_gradients.register_fake
def _(
    tensors: list[Tensor],
    total1: Tensor | None,
    total2: Tensor | None,
    pixels: int,
    batch1: bool,
    batch2: bool,
) -> tuple[Tensor, Tensor]:
    gates, sums = tensors[0], tensors[1]
    wide, _ = accumulation(sums.dtype)
    by_channel = gates.new_empty(4, gates.shape[1], dtype=wide)
    return gates.new_empty(7, *gates.shape, dtype=wide), by_channel
