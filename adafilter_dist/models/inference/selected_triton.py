"""A gated layer at evaluation in one Triton kernel: only the filters that an image chose.

For CUDA; one operator to torch.compile, no gradient. Importing this needs triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import custom_op

from adafilter_dist.errors import UserError
from adafilter_dist.models.inference.selected_kernel import selected_conv_kernel
from adafilter_dist.models.ops.pixel_rows import pixel_rows, pixel_stride

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Below this many input channels a tile of one tap would be mostly padding.
_FEW_CHANNELS = 16
# Programs that keep an H100 busy: two for each of its 132 multiprocessors.
_BUSY = 264


def selected_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`selected_conv_mean` of paired filters, without the mean.

    weight (2, Cout, KH, KW, Cin) and bias (2, Cout): [0] frozen and [1] tuned.
    """
    if weight.ndim != 5 or weight.shape[0] != 2:
        raise UserError(
            f"selected_conv: weight is {tuple(weight.shape)}; allowed is (2, Cout, KH, KW, Cin)"
        )
    if bias.shape != weight.shape[:2]:
        raise UserError(
            f"selected_conv: bias is {tuple(bias.shape)}, not {tuple(weight.shape[:2])}"
        )
    out, _ = selected_conv_mean(
        x,
        weight.flatten(0, 1),
        bias.flatten(),
        bits,
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        residual=residual,
        relu=relu,
        want_mean=False,
    )
    return out


def selected_conv_mean(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    pairs: Tensor | None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    residual: Tensor | None = None,
    relu: bool = False,
    want_mean: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Each image's convolution by its own filters, + bias (+ residual), then perhaps ReLU.

    With ``want_mean`` also the mean of that over the pixels, (N, Cout) float32, else None.
    x (N, Cin, H, W); weight (T, KH, KW, Cin) and bias (T,), BatchNorm folded in; pairs int64
    (2, Cout): the rows of the frozen and of the tuned filters, None for one bank behind the other;
    bits (N, Cout) bool, True = tuned; residual as the result: (N, Cout, H',
    W'), channels-last, in x's dtype (float32, bfloat16 or float16). Sums are float32; products of
    float32 are TF32 where torch.backends.cuda.matmul.allow_tf32 says so. Raises UserError for
    shapes or dtypes that do not fit.
    """
    _check(x, weight, bias, bits, pairs, residual, stride, padding, dilation)
    how = (list(stride), list(padding), list(dilation))
    out, mean = _selected_conv(x, weight, bias, bits, pairs, *how, residual, relu, want_mean)
    return out, mean if want_mean else None


@custom_op("adafilter::selected_conv", mutates_args=())
def _selected_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    pairs: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    residual: Tensor | None,
    relu: bool,
    want_mean: bool,
) -> tuple[Tensor, Tensor]:
    out = _empty_output(x, weight, bits, stride, padding, dilation)
    images, filters, out_height, out_width = out.shape
    pixels = out_height * out_width
    _, kh, kw, channels = weight.shape
    x, stride_x = pixel_rows(x)
    other, stride_residual = (out, 0) if residual is None else pixel_rows(residual)
    tiles = choose_tiles(
        images, pixels, filters, channels, kh * kw, x.dtype, _shared_memory(x.device)
    )
    shares = triton.cdiv(pixels, tiles.m)
    blocks = shares * triton.cdiv(filters, tiles.f)
    mean = torch.empty((images * want_mean, shares, filters), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        selected_conv_kernel[(images * blocks,)](
            x,
            weight.contiguous(),
            bias.contiguous(),
            bits.contiguous(),
            bits if pairs is None else pairs.contiguous(),
            other,
            out,
            mean,
            x.shape[2],
            x.shape[3],
            channels,
            filters,
            out_width,
            pixels,
            stride_x,
            stride_residual,
            *stride,
            *padding,
            *dilation,
            KH=kh,
            KW=kw,
            FLAT=channels < _FEW_CHANNELS,
            WHOLE_C=channels % tiles.k == 0,
            PAIRS=pairs is not None,
            RESIDUAL=residual is not None,
            RELU=relu,
            MEAN=want_mean,
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            BLOCK_M=tiles.m,
            BLOCK_F=tiles.f,
            BLOCK_K=tiles.k,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )
    return out, mean[:, 0].clone() if shares == 1 else mean.sum(1)


@_selected_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    pairs: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    residual: Tensor | None,
    relu: bool,
    want_mean: bool,
) -> tuple[Tensor, Tensor]:
    out = _empty_output(x, weight, bits, stride, padding, dilation)
    return out, x.new_empty(x.shape[0] * want_mean, bits.shape[1], dtype=torch.float32)


def _empty_output(
    x: Tensor,
    weight: Tensor,
    bits: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return torch.empty(
        (x.shape[0], bits.shape[1], *_output_size(x, weight, stride, padding, dilation)),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _output_size(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, int]:
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[1 + i] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    )
    return height, width


@dataclass(frozen=True)
class Tiles:
    """A tile of the product: m pixels by f filters, k deep."""

    m: int
    f: int
    k: int
    warps: int
    stages: int


def choose_tiles(
    images: int,
    pixels: int,
    filters: int,
    channels: int,
    taps: int,
    dtype: torch.dtype,
    shared_memory: int,
) -> Tiles:
    """Tiles for `images` of `pixels` each; `shared_memory`: bytes that one program may use."""
    k = 32 if dtype == torch.float32 or channels < 64 else 64
    # No tile spans two images, so 7x7 pixels get a tile of 64; a larger one must not add more than
    # an eighth of padding to what tiles of 64 have. A stem's addresses need registers: 64 as well.
    small = triton.cdiv(pixels, 64) * 64
    if channels >= _FEW_CHANNELS and triton.cdiv(pixels, 128) * 128 <= 1.125 * small:
        m = 128
    else:
        m = min(64, max(16, triton.next_power_of_2(pixels)))
    # A short sum ends before loads can hide behind products: smaller tiles, so that several
    # programs share a processor.
    widest = 128 if taps * channels >= 512 else 64
    f = min(widest, max(16, triton.next_power_of_2(filters)))
    # Rather small tiles than idle processors.
    while f > 32 and images * triton.cdiv(pixels, m) * triton.cdiv(filters, f) < _BUSY:
        f //= 2
    # A little is left for what the compiler itself keeps there.
    room = (shared_memory - 2048) // ((m + f) * k * dtype.itemsize)
    stages = max(1, min(4, room, triton.cdiv(taps * channels, k)))
    return Tiles(m, f, k, warps=8 if m * f >= 128 * 128 else 4, stages=stages)


def _shared_memory(device: torch.device) -> int:
    """Bytes that one program may use; 64 KiB where there is no GPU, as in the interpreter."""
    if device.type != "cuda":
        return 64 * 1024
    properties: Any = torch.cuda.get_device_properties(device)  # not all in torch 2.11's types
    return int(properties.shared_memory_per_block_optin)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    pairs: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    if x.dtype not in _DTYPES or weight.dtype != x.dtype:
        raise UserError(
            f"selected_conv: x is {x.dtype}, weight {weight.dtype}; "
            "allowed are float32, bfloat16 and float16, the same for both"
        )
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[3] != x.shape[1]:
        raise UserError(
            f"selected_conv: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit; "
            "allowed are (N, Cin, H, W) and (rows, KH, KW, Cin), groups=1"
        )
    filters = len(weight) // 2 if pairs is None else pairs.shape[1]
    wanted = {"bias": (bias, (len(weight),)), "bits": (bits, (x.shape[0], filters))}
    if pairs is not None:
        wanted["pairs"] = (pairs, (2, filters))
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise UserError(f"selected_conv: {name} is {tuple(tensor.shape)}, not {shape}")
    if bits.dtype != torch.bool:
        raise UserError(f"selected_conv: bits are {bits.dtype}; allowed is bool, True = tuned")
    image = x.shape[2] * x.shape[3] * (pixel_stride(x) or x.shape[1])
    if image >= 2**31:
        raise UserError(f"selected_conv: an image of x spans {image} values; allowed: under 2^31")
    size = _output_size(x, weight, list(stride), list(padding), list(dilation))
    if min(size) < 1:
        raise UserError(
            f"selected_conv: x {tuple(x.shape)} is smaller than the filters {tuple(weight.shape)}"
        )
    result = (x.shape[0], filters, *size)
    if residual is not None and residual.shape != result:
        raise UserError(f"selected_conv: residual is {tuple(residual.shape)}, the result {result}")
