"""Ways to convolve each image by the filters chosen for it, and which way costs less.

Everywhere: ``rows`` (T, KH, KW, C_in / groups) is a table of filters with ``bias`` (T,), ``chosen``
int64 (N, C) says which row makes output channel c of image n, y is (N, C, H', W').
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adafilter_dist.models.fold import BareConv
from adafilter_dist.models.ops.kept_rows import KeptRows
from adafilter_dist.models.ops.selected_cpu import can_compute, selected_conv

# What it costs to fetch one more weight for one more image (to copy it out of the table, to copy it
# again into the layout that the convolution works in, to start and end a small convolution), in
# multiply-adds at the speed of a large one. Measured on two cores of a Xeon (Cascade Lake).
FETCH = 300
# With no more output pixels than this, a convolution spends most of its time on the layout of the
# filters; a matrix product that reads them where they lie took half to a third of the time.
FEW_PIXELS = 64
# For one image with no more output pixels than this, the compiled kernel takes as long as torch's
# convolution, and reads the filters where they lie: copying them together is saved.
SOME_PIXELS = 200
# No more than this share of filters that images disagree about is computed twice: the compiled
# kernel takes somewhat longer than torch's convolution for the same products.
FEW_MIXED = 0.05


@dataclass(frozen=True)
class Behind:
    """What stands behind a convolution: + residual (N, C, H', W') or None, then perhaps ReLU."""

    residual: Tensor | None = None
    relu: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        """Of y, which may be overwritten."""
        residual = self.residual
        if residual is not None:
            y = y.add_(residual) if residual.dtype == y.dtype else y + residual
        return y.relu_() if self.relu else y

    def split(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Behind, Behind]:
        """What a kernel that writes such a y does in the same go, and what is left to do."""
        more = self.residual
        fits = more is None or (more.shape == shape and more.dtype == dtype)
        return (self, NOTHING) if fits else (NOTHING, self)


NOTHING = Behind()


def choose(
    conv: BareConv,
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    chosen: Tensor,
    kept: KeptRows | None,
    behind: Behind = NOTHING,
) -> Tensor:
    """y and what stands behind it, the way that costs less.

    Where autograd goes through x, no buffer is used again.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        kept = None
    if len(chosen) == 0:
        return behind(convolve(conv, x, rows[: chosen.shape[1]], bias[: chosen.shape[1]]))
    if len(chosen) == 1:
        return alike(conv, x, rows, bias, chosen[0], kept, behind)
    differs = chosen != chosen[0]
    mixed = differs.any(0).nonzero().flatten()
    if not len(mixed):
        return alike(conv, x, rows, bias, chosen[0], kept, behind)
    if len(mixed) > FEW_MIXED * chosen.shape[1] and can_compute(conv, x, rows):
        return _compiled(conv, x, rows, bias, chosen, behind)
    return behind(_apart(conv, x, rows, bias, chosen, mixed, kept))


def _compiled(
    conv: BareConv, x: Tensor, rows: Tensor, bias: Tensor, chosen: Tensor, behind: Behind
) -> Tensor:
    inside, left = behind.split((*chosen.shape, *conv.output_size(x)), x.dtype)
    return left(selected_conv(conv, x, rows, bias, chosen, inside.residual, inside.relu))


def _apart(
    conv: BareConv,
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    chosen: Tensor,
    mixed: Tensor,
    kept: KeptRows | None,
) -> Tensor:
    share = len(mixed) / chosen.shape[1]
    pixels = _pixels(conv, x)
    if conv.groups > 1:
        # Groups must stay whole: either every channel is computed twice, or each image alone.
        mixed = torch.arange(chosen.shape[1], device=chosen.device)
        share = 1.0
    if each_is_cheaper(pixels, share):
        return each(conv, x, rows, bias, chosen, kept)
    return union(conv, x, rows, bias, chosen, mixed, kept)


def each_is_cheaper(pixels: int, mixed: float) -> bool:
    """Whether `each` is expected to beat `union`, weight by weight.

    ``mixed`` is the share of filters that are not the same row for all images: `union` multiplies
    by those once more at each of an image's ``pixels``; `each` fetches every weight for each image.
    """
    return pixels * mixed > FETCH


def alike(
    conv: BareConv,
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    chosen: Tensor | None,
    kept: KeptRows | None,
    behind: Behind = NOTHING,
) -> Tensor:
    """All images by the same filters: rows[chosen], chosen (C,), or all rows as they lie (None)."""
    if len(x) == 1 and FEW_PIXELS < _pixels(conv, x) <= SOME_PIXELS and can_compute(conv, x, rows):
        if chosen is None:
            chosen = torch.arange(len(rows))
        return _compiled(conv, x, rows, bias, chosen[None], behind)
    if chosen is not None:
        rows, bias = _picked(rows, bias, chosen, kept)
    return behind(convolve(conv, x, rows, bias))


def convolve(conv: BareConv, x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """All images by the same filters, rows (R, KH, KW, C_in / groups) -> (N, R, H', W')."""
    if conv.plain and conv.groups == 1 and x.device.type == "cpu":
        height, width = conv.output_size(x)
        if 0 < len(x) * height * width <= FEW_PIXELS:
            return _product(conv, x, rows, bias, height, width)
    return conv(x, rows.permute(0, 3, 1, 2), bias)


def _product(
    conv: BareConv, x: Tensor, rows: Tensor, bias: Tensor, height: int, width: int
) -> Tensor:
    """The convolution as one matrix product: filters by the patches of all pixels."""
    (top, left), (kernel_h, kernel_w) = conv.padding, conv.kernel
    (down, right), (apart_h, apart_w) = conv.stride, conv.dilation
    pixels = x.permute(0, 2, 3, 1)
    if top or left:
        pixels = F.pad(pixels, (0, 0, left, left, top, top))
    n, h, w, c = pixels.stride()
    patches = pixels.as_strided(
        (len(x), height, width, kernel_h, kernel_w, x.shape[1]),
        (n, down * h, right * w, apart_h * h, apart_w * w, c),
        pixels.storage_offset(),
    ).reshape(len(x) * height * width, -1)
    y = torch.addmm(bias[:, None], rows.flatten(1), patches.t())
    return y.t().contiguous().view(len(x), height, width, -1).permute(0, 3, 1, 2)


def each(
    conv: BareConv, x: Tensor, rows: Tensor, bias: Tensor, chosen: Tensor, kept: KeptRows | None
) -> Tensor:
    """One convolution an image, by its own filters: nothing is computed in vain."""
    made = [
        convolve(conv, image, *_picked(rows, bias, own, kept))
        for image, own in zip(x.split(1), chosen, strict=True)
    ]
    return torch.cat(made)


def union(
    conv: BareConv,
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    chosen: Tensor,
    mixed: Tensor,
    kept: KeptRows | None,
) -> Tensor:
    """All images by the first image's filters, and once more by those that others want instead.

    ``mixed`` int64 (M,) are the channels that are not the same row for all; each has two rows.
    """
    first = chosen[0]
    y = convolve(conv, x, *_picked(rows, bias, first, kept))
    differs = chosen[:, mixed] != first[mixed]
    # The row that is not the first image's; argmax finds some image that wants it.
    others = chosen[differs.to(torch.uint8).argmax(0), mixed]
    z = convolve(conv, x, *_picked(rows, bias, others, None))
    if len(mixed) == len(first):
        return torch.where(differs[:, :, None, None], z, y)
    y[:, mixed] = torch.where(differs[:, :, None, None], z, y[:, mixed])
    return y


def _pixels(conv: BareConv, x: Tensor) -> int:
    """Of an image's output, roughly: what pads by itself is not asked."""
    return x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])


def _picked(
    rows: Tensor, bias: Tensor, chosen: Tensor, kept: KeptRows | None
) -> tuple[Tensor, Tensor]:
    if kept is None:
        return rows.index_select(0, chosen), bias.index_select(0, chosen)
    return kept.pick(rows, bias, chosen)
