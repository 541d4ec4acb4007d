"""A gated layer's forward and backward in training, put together from the four passes."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5
NAMES = ("y1", "y2", "gates", "weight1", "bias1", "weight2", "bias2", "residual")


@dataclass
class Layer:
    """y1, y2 (N, C, H, W), gates (N, C), both BatchNorms' weight and bias (C,), a residual."""

    y1: Tensor
    y2: Tensor
    gates: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    residual: Tensor | None
    relu: bool

    def tensors(self) -> list[Tensor]:
        """In the order of NAMES; the residual may be missing at the end."""
        named = [getattr(self, name) for name in NAMES]
        return [tensor for tensor in named if tensor is not None]

    def to(self, device: str) -> Layer:
        """A copy on `device`, in the same layout."""
        moved = {
            name: None if tensor is None else tensor.to(device)
            for name, tensor in ((name, getattr(self, name)) for name in NAMES)
        }
        return Layer(**moved, relu=self.relu)


def random_layer(
    shape: tuple[int, int, int, int], *, residual: bool, relu: bool, gates: str, seed: int = 0
) -> Layer:
    """float64; y1 and y2 are the channel halves of one channels-last tensor, far from mean 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    images, channels, height, width = shape
    stacked = normal(images, 2 * channels, height, width) + 3
    y1, y2 = stacked.contiguous(memory_format=torch.channels_last).split(channels, 1)
    bits = torch.rand(images, channels, generator=generator, dtype=torch.float64)
    chosen = {"soft": bits, "hard": (bits > 0.5).double(), "ones": torch.ones_like(bits)}
    chosen["zeros"] = torch.zeros_like(bits)
    return Layer(
        y1,
        y2,
        chosen[gates],
        *(normal(channels) for _ in range(4)),
        normal(*shape).contiguous(memory_format=torch.channels_last) if residual else None,
        relu,
    )


def by_autograd(
    layer: Layer, dout: Tensor, dmean: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The result, and the gradients of `layer.tensors()`, by torch's own BatchNorm and autograd.

    dmean (N, C) is the gradient of the result's mean over pixels, where that is used too.
    """
    leaves = [tensor.detach().clone().requires_grad_() for tensor in layer.tensors()]
    y1, y2, gates, weight1, bias1, weight2, bias2 = leaves[:7]
    tuned = F.batch_norm(y1, None, None, weight1, bias1, True, 0.0, EPS)
    frozen = F.batch_norm(y2, None, None, weight2, bias2, True, 0.0, EPS)
    g = gates[:, :, None, None]
    out = g * tuned + (1 - g) * frozen
    if layer.residual is not None:
        out = out + leaves[7]
    if layer.relu:
        out = out.relu()
    used, grads = [out], [dout]
    if dmean is not None:
        used, grads = [out, out.mean((2, 3))], [dout, dmean]
    return out.detach(), list(torch.autograd.grad(used, leaves, grads))


def by_passes(
    passes: ModuleType,
    layer: Layer,
    dout: Tensor,
    dmean: Tensor | None = None,
    *,
    stacked: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The same by `passes.moments`, `blend`, `sums` and `spread`, formulas of BatchNorm by hand."""
    y1, y2, gates, weight1, bias1, weight2, bias2, *_ = layer.tensors()
    count = y1.numel() // y1.shape[1]
    (m1, v1), (m2, v2) = passes.moments(y1), passes.moments(y2)
    scale1, scale2 = (v1 + EPS).rsqrt(), (v2 + EPS).rsqrt()
    a1, a2 = gates * weight1 * scale1, (1 - gates) * weight2 * scale2
    b = gates * bias1 + (1 - gates) * bias2 - a1 * m1 - a2 * m2
    out, mean = passes.blend(y1, y2, a1, a2, b, layer.residual, layer.relu)
    torch.testing.assert_close(mean, out.mean((2, 3)), rtol=1e-12, atol=1e-12)

    act = out if layer.relu else None
    more = None if dmean is None else dmean / (y1.shape[2] * y1.shape[3])
    s0, s1, s2 = passes.sums(dout, more, act, y1, y2, m1, m2)
    dgates = weight1 * scale1 * s1 + bias1 * s0 - weight2 * scale2 * s2 - bias2 * s0
    dweight1, dbias1 = (gates * s1).sum(0) * scale1, (gates * s0).sum(0)
    dweight2, dbias2 = ((1 - gates) * s2).sum(0) * scale2, ((1 - gates) * s0).sum(0)
    q1, r1 = -weight1 * scale1.square() * dweight1 / count, -weight1 * scale1 * dbias1 / count
    q2, r2 = -weight2 * scale2.square() * dweight2 / count, -weight2 * scale2 * dbias2 / count
    results = passes.spread(
        *(dout, more, act, y1, y2, m1, m2, a1, q1, r1, a2, q2, r2),
        want_residual=layer.residual is not None,
        stacked=stacked,
    )
    dy1, dy2 = results[0].split(y1.shape[1], 1) if stacked else results[:2]
    gradients = [dy1, dy2, dgates, dweight1, dbias1, dweight2, dbias2]
    return out, gradients if layer.residual is None else [*gradients, results[-1]]
