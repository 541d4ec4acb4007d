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
    """Each image's convolution by its own filters, + bias (+ residual), then perhaps ReLU.

    x (N, Cin, H, W); weight (2, Cout, KH, KW, Cin) and bias (2, Cout), BatchNorm folded in, [0]
    frozen and [1] tuned; bits (N, Cout) bool, True = tuned; residual as the result: (N, Cout, H',
    W'), channels-last, in x's dtype (float32, bfloat16 or float16). Sums are float32; products of
    float32 are TF32 where torch.backends.cuda.matmul.allow_tf32 says so. Raises UserError for
    shapes or dtypes that do not fit.
    """
    _check(x, weight, bias, bits, residual, stride, padding, dilation)
    out: Tensor = _selected_conv(
        x, weight, bias, bits, list(stride), list(padding), list(dilation), residual, relu
    )
    return out


@custom_op("adafilter::selected_conv", mutates_args=())
def _selected_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    out = _empty_output(x, weight, stride, padding, dilation)
    images, filters, out_height, out_width = out.shape
    pixels = out_height * out_width
    _, _, kh, kw, channels = weight.shape
    x, stride_x = pixel_rows(x)
    other, stride_residual = (out, 0) if residual is None else pixel_rows(residual)
    tiles = choose_tiles(
        images, pixels, filters, channels, kh * kw, x.dtype, _shared_memory(x.device)
    )
    blocks = triton.cdiv(pixels, tiles.m) * triton.cdiv(filters, tiles.f)
    with torch.cuda.device_of(x):
        selected_conv_kernel[(images * blocks,)](
            x,
            weight.contiguous(),
            bias.contiguous(),
            bits.contiguous(),
            other,
            out,
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
            RESIDUAL=residual is not None,
            RELU=relu,
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            BLOCK_M=tiles.m,
            BLOCK_F=tiles.f,
            BLOCK_K=tiles.k,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )
    return out


@_selected_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    return _empty_output(x, weight, stride, padding, dilation)


def _empty_output(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    return torch.empty(
        _output_shape(x, weight, stride, padding, dilation),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _output_shape(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, int, int, int]:
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    )
    return x.shape[0], weight.shape[1], height, width


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
    if x.ndim != 4 or weight.ndim != 5 or weight.shape[0] != 2 or weight.shape[4] != x.shape[1]:
        raise UserError(
            f"selected_conv: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit; "
            "allowed are (N, Cin, H, W) and (2, Cout, KH, KW, Cin), groups=1"
        )
    wanted = {"bias": (bias, (2, weight.shape[1])), "bits": (bits, (x.shape[0], weight.shape[1]))}
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise UserError(f"selected_conv: {name} is {tuple(tensor.shape)}, not {shape}")
    if bits.dtype != torch.bool:
        raise UserError(f"selected_conv: bits are {bits.dtype}; allowed is bool, True = tuned")
    image = x.shape[2] * x.shape[3] * (pixel_stride(x) or x.shape[1])
    if image >= 2**31:
        raise UserError(f"selected_conv: an image of x spans {image} values; allowed: under 2^31")
    result = _output_shape(x, weight, list(stride), list(padding), list(dilation))
    if min(result[2:]) < 1:
        raise UserError(
            f"selected_conv: x {tuple(x.shape)} is smaller than the filters {tuple(weight.shape)}"
        )
    if residual is not None and residual.shape != result:
        raise UserError(f"selected_conv: residual is {tuple(residual.shape)}, the result {result}")
