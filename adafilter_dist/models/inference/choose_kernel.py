"""Ways to convolve each image by the filters chosen for it, and which way costs less.

Everywhere: ``table`` holds the filters, ``bits`` bool (N, C) say which of the two of channel c
image n has chosen, ``chosen`` int64 (N, C) which row of the table that is; y is (N, C, H', W').
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adafilter_dist.models.inference.filter_table import FilterTable
from adafilter_dist.models.inference.fold_batchnorm import BareConv
from adafilter_dist.models.inference.selected_cpu import can_compute, selected_conv

# What it costs to fetch one more weight for one more image (to copy it out of the table, to copy it
# again into the layout that the convolution works in, to start and end a small convolution), in
# multiply-adds at the speed of a large one. Measured on two cores of a Xeon (Cascade Lake).
FETCH = 300
# With no more output pixels than this, a convolution spends most of its time on the layout of the
# filters; a matrix product that reads them where they lie took half to a third of the time.
FEW_PIXELS = 64
# No more than this share of filters that images disagree about is computed twice: in large batches
# torch's convolution is somewhat faster than the compiled kernel, and needs no second layout.
FEW_MIXED = 0.05


@dataclass(frozen=True)
class Epilogue:
    """What follows a convolution: + residual (N, C, H', W') or None, then perhaps ReLU."""

    residual: Tensor | None = None
    relu: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        """Of y, which may be overwritten."""
        residual = self.residual
        if residual is not None:
            y = y.add_(residual) if residual.dtype == y.dtype else y + residual
        return y.relu_() if self.relu else y

    def split(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Epilogue, Epilogue]:
        """The part that a kernel writing such a y can fuse, and the part to apply afterwards."""
        more = self.residual
        fits = more is None or (more.shape == shape and more.dtype == dtype)
        return (self, NO_EPILOGUE) if fits else (NO_EPILOGUE, self)


NO_EPILOGUE = Epilogue()


def choose(
    conv: BareConv, x: Tensor, table: FilterTable, bits: Tensor, epilogue: Epilogue = NO_EPILOGUE
) -> Tensor:
    """y and its epilogue, computed the way that costs least.

    If x requires a gradient, no buffer is reused.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        table = table.without_buffers()
    if len(x) == 0:
        filters = table.filters
        return epilogue(convolve(conv, x, table.rows[:filters], table.bias[:filters]))
    chosen = table.chosen(bits)
    if len(x) == 1:
        return same_filters_for_all(conv, x, table, bits, chosen[0], epilogue)
    mixed = (chosen != chosen[0]).any(0).nonzero().flatten()
    if not len(mixed):
        return same_filters_for_all(conv, x, table, bits, chosen[0], epilogue)
    if len(mixed) > FEW_MIXED * table.filters and can_compute(conv, x, table):
        return _compiled(conv, x, table, bits, epilogue)
    pixels, share = _pixels(conv, x), len(mixed) / table.filters
    if conv.groups > 1:
        # Groups must stay whole: either every channel is computed twice, or each image alone.
        mixed, share = torch.arange(table.filters, device=mixed.device), 1.0
    if each_is_cheaper(pixels, share):
        return epilogue(each(conv, x, table, chosen))
    return epilogue(union(conv, x, table, chosen, mixed))


def _compiled(
    conv: BareConv, x: Tensor, table: FilterTable, bits: Tensor, epilogue: Epilogue
) -> Tensor:
    inside, left = epilogue.split((*bits.shape, *conv.output_size(x)), x.dtype)
    return left(selected_conv(conv, x, table, bits, inside.residual, inside.relu))


def each_is_cheaper(pixels: int, mixed: float) -> bool:
    """Whether `each` is expected to beat `union`, weight by weight.

    ``mixed`` is the share of filters that are not the same row for all images: `union` multiplies
    by those once more at each of an image's ``pixels``; `each` fetches every weight for each image.
    """
    return pixels * mixed > FETCH


def same_filters_for_all(
    conv: BareConv,
    x: Tensor,
    table: FilterTable,
    bits: Tensor | None,
    chosen: Tensor | None,
    epilogue: Epilogue = NO_EPILOGUE,
) -> Tensor:
    """All images by the same filters: rows[chosen], chosen (C,), or all rows as they lie (None).

    ``bits`` (N, C) say the same; None: they make no difference.
    """
    if len(x) == 1 and can_compute(conv, x, table):
        if bits is None:
            bits = torch.zeros(1, table.filters, dtype=torch.bool)
        return _compiled(conv, x, table, bits, epilogue)
    return epilogue(convolve(conv, x, *table.gather(chosen)))


def convolve(conv: BareConv, x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """All images by the same filters, rows (R, KH, KW, C_in / groups) -> (N, R, H', W')."""
    # An exported program has no number of pictures to choose by.
    known = not torch.compiler.is_exporting()
    if known and conv.plain and conv.groups == 1 and x.device.type == "cpu":
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


def each(conv: BareConv, x: Tensor, table: FilterTable, chosen: Tensor) -> Tensor:
    """One convolution an image, by its own filters: no output is computed and thrown away."""
    made = [
        convolve(conv, image, *table.gather(own))
        for image, own in zip(x.split(1), chosen, strict=True)
    ]
    return torch.cat(made)


def union(conv: BareConv, x: Tensor, table: FilterTable, chosen: Tensor, mixed: Tensor) -> Tensor:
    """All images by the first image's filters, and once more by those that others want instead.

    ``mixed`` int64 (M,) are the channels that are not the same row for all; each has two rows.
    """
    first = chosen[0]
    y = convolve(conv, x, *table.gather(first))
    differs = chosen[:, mixed] != first[mixed]
    # The row that is not the first image's; argmax finds some image that wants it.
    others = chosen[differs.to(torch.uint8).argmax(0), mixed]
    z = convolve(conv, x, *table.without_buffers().gather(others))
    if len(mixed) == len(first):
        return torch.where(differs[:, :, None, None], z, y)
    y[:, mixed] = torch.where(differs[:, :, None, None], z, y[:, mixed])
    return y


def _pixels(conv: BareConv, x: Tensor) -> int:
    """Of an image's output, roughly: what pads by itself is not asked."""
    return x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
