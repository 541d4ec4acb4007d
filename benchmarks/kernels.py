"""What the Triton kernels of gated layers reach of the GPU they run on: a Markdown table.

    python benchmarks/kernels.py                               # batch 64, bfloat16
    python benchmarks/kernels.py --dtype float32 --csv kernels.csv

The operators of a gated layer in training move memory: their bytes, counted once for each time that
a pass reads or writes them, over their time, beside a large copy on the same card. The convolution
by chosen filters computes: its FLOPs over its time, beside a large matrix product. *torch* is the
same in plain PyTorch, and torch's convolution with one set of filters. Layers are ResNet-50's at
224 pixels, filled with noise, every filter chosen by a coin. Medians; before each call 256 MB are
written, so that nothing is left in the cache. *error* is the largest distance from plain PyTorch,
relative to the largest value.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from adafilter_dist.errors import UserError
from adafilter_dist.models.ops import passes_reference
from adafilter_dist.models.ops.norm import Affine

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Channels and side of the outputs of convolutions.
OUTPUTS = (
    *((64, 112), (64, 56), (256, 56), (128, 28), (512, 28)),
    *((256, 14), (1024, 14), (512, 7), (2048, 7)),
)
# Of each operator, with ReLU, residual and stacked halves: how often its passes move a value for
# every image, channel and pixel, and a float32 for every image and channel.
MOVED = {"statistics": (2, 1), "choose": (4, 2), "layer_gradients": (11, 11)}
DEVICE = "cuda"
FLUSH = 256 * 2**20
COPY = 2**30
SIDE = 8192


@dataclass(frozen=True)
class Conv:
    """A square convolution with half padding of `size` x `size` pixels."""

    channels: int
    filters: int
    kernel: int
    stride: int
    size: int

    @property
    def label(self) -> str:
        return (
            f"{self.kernel}x{self.kernel}/{self.stride} "
            f"{self.channels}->{self.filters} at {self.size}"
        )

    @property
    def padding(self) -> int:
        return self.kernel // 2


CONVS = (
    Conv(3, 64, 7, 2, 224),
    Conv(64, 64, 3, 1, 56),
    Conv(64, 256, 1, 1, 56),
    Conv(128, 128, 3, 2, 56),
    Conv(512, 128, 1, 1, 28),
    Conv(256, 256, 3, 1, 14),
    Conv(1024, 256, 1, 1, 14),
    Conv(512, 512, 3, 1, 7),
    Conv(512, 2048, 1, 1, 7),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: milliseconds, GB/s or TFLOP/s, shares of what the card does."""

    kernel: str
    layer: str
    ms: float
    rate: float
    unit: str
    share: float
    torch_ms: float
    error: float


def operator_bytes(name: str, images: int, channels: int, pixels: int, itemsize: int) -> int:
    """Bytes that the passes of an operator read and write."""
    values, coefficients = MOVED[name]
    return images * channels * (values * pixels * itemsize + coefficients * 4)


def conv_flops(conv: Conv, images: int) -> int:
    """Multiplications and additions of a convolution of `images`."""
    side = (conv.size + 2 * conv.padding - conv.kernel) // conv.stride + 1
    return 2 * images * side**2 * conv.filters * conv.channels * conv.kernel**2


def markdown(rows: Iterable[Row]) -> str:
    """The table; `share` is of the card's own copy or matrix product."""
    lines = [
        "| kernel | layer | ms | rate | of the card's | torch, ms | error |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.kernel} | {row.layer} | {row.ms:.3f} | {row.rate:.0f} {row.unit} "
            f"| {row.share:.0%} | {row.torch_ms:.3f} | {row.error:.0e} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="images (64)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=20, help="timings of each (20)")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    options = parser.parse_args()
    try:
        if min(options.batch, options.repeats) < 1:
            raise UserError("--batch and --repeats: allowed is 1 or more")
        if not torch.cuda.is_available():
            raise UserError("benchmarks/kernels.py times kernels on a CUDA device; there is none")
        measure(options.batch, DTYPES[options.dtype], options.repeats, options.csv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(images: int, dtype: torch.dtype, repeats: int, to: Path | None) -> None:
    import triton

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    watch = Stopwatch(repeats)
    bandwidth, flops = watch.copy_rate(), watch.product_rate(dtype)
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": str(images),
        "copy_gb_s": f"{bandwidth / 1e9:.0f}",
        "product_tflop_s": f"{flops / 1e12:.1f}",
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    rows = [
        *time_operators(watch, images, dtype, bandwidth),
        *time_convolutions(watch, images, dtype, flops),
    ]
    print(markdown(rows))
    if to is not None:
        with to.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*(field.name for field in fields(Row)), *machine])
            writer.writeheader()
            writer.writerows({**asdict(row), **machine} for row in rows)


class Stopwatch:
    """Median seconds of calls on the GPU, each with a cold cache."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self._flush = torch.empty(FLUSH, dtype=torch.uint8, device=DEVICE)

    def seconds(self, call: Callable[[], object]) -> float:
        for _ in range(3):  # compiles, picks algorithms
            call()
        events = []
        for _ in range(self.repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()  # and gives Python time to launch what is timed
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3

    def copy_rate(self) -> float:
        """Bytes a second that a large copy reads and writes."""
        source = torch.zeros(COPY, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        return 2 * COPY / self.seconds(lambda: target.copy_(source))

    def product_rate(self, dtype: torch.dtype) -> float:
        """FLOPs a second of a large matrix product."""
        a, b = torch.randn(2, SIDE, SIDE, device=DEVICE).to(dtype)
        return 2 * SIDE**3 / self.seconds(lambda: a @ b)


def time_operators(
    watch: Stopwatch, images: int, dtype: torch.dtype, bandwidth: float
) -> Iterator[Row]:
    for channels, side in OUTPUTS:
        for name, (ours, plain) in operators(images, channels, side, dtype).items():
            seconds = watch.seconds(ours)
            rate = operator_bytes(name, images, channels, side**2, dtype.itemsize) / seconds
            yield Row(
                kernel=name,
                layer=f"{channels} at {side}",
                ms=seconds * 1e3,
                rate=rate / 1e9,
                unit="GB/s",
                share=rate / bandwidth,
                torch_ms=watch.seconds(plain) * 1e3,
                error=distance(ours(), plain()),
            )


Call = Callable[[], list[Tensor]]


def operators(
    images: int, channels: int, side: int, dtype: torch.dtype
) -> dict[str, tuple[Call, Call]]:
    """Each operator of a layer, and the same in plain PyTorch, on the same noise.

    BatchNorms take the statistics of all images.
    """
    from adafilter_dist.models.ops import layer_operators

    stacked = noise(images, 2 * channels, side, dtype)
    y1, y2 = stacked.split(channels, 1)
    dout, residual = noise(images, channels, side, dtype), noise(images, channels, side, dtype)
    gates = (torch.rand(images, channels, device=DEVICE) > 0.5).float()
    dmean = torch.randn(images, channels, device=DEVICE)
    pairs = [torch.randn(channels, device=DEVICE) for _ in range(4)]
    sums = [torch.zeros(2 * channels + 1, device=DEVICE) for _ in range(2)]
    norms = [*pairs[:2], *pairs[:2], *pairs[2:], *pairs[2:]]
    how = ([0, 0], [1e-5, 1e-5], 1, 1.0)

    def statistics() -> list[Tensor]:
        return [layer_operators.statistics(stacked, None, gates, norms, *sums, *how)]

    (rows,) = statistics()

    def choose() -> list[Tensor]:
        return list(layer_operators.choose(stacked, None, gates, rows, residual, 1, True))

    out, _ = choose()

    def gradients() -> list[Tensor]:
        results: list[Tensor] = layer_operators.layer_gradients(
            *(dout, dmean, out, stacked, None, gates, pairs, rows, [0, 0], 1, True)
        )
        return results

    def plain_statistics() -> list[Tensor]:
        results = []
        for number, y in enumerate((y1, y2)):
            weight, bias = pairs[2 * number : 2 * number + 2]
            mean, var = passes_reference.moments(y)
            rstd = (var + 1e-5).rsqrt()
            count = torch.full_like(mean, images)
            results += [mean, rstd, weight * rstd, bias - mean * weight * rstd, count]
        return [torch.stack(results)[:, None]]

    of1, of2 = rows[:5, 0], rows[5:, 0]

    def plain_choose() -> list[Tensor]:
        other = 1 - gates
        shift = gates * of1[3] + other * of2[3]
        return list(
            passes_reference.blend(y1, y2, gates * of1[2], other * of2[2], shift, residual, True)
        )

    def plain_gradients() -> list[Tensor]:
        more, pixels = dmean / side**2, side**2
        sums = passes_reference.sums(dout, more, out, y1, y2, of1[0], of2[0])
        first = Affine(pairs[0], pairs[1], of1[1], True)
        second = Affine(pairs[2], pairs[3], of2[1], True)
        small = passes_reference.gradients(gates, *sums, first, second, pixels)
        options = (dout, more, out, y1, y2, of1[0], of2[0], *small.first, *small.second)
        dy, dz = passes_reference.spread(*options, want_residual=True, stacked=True)
        of_affine = (small.weight1, small.bias1, small.weight2, small.bias2)
        return [small.gates, *of_affine, dy, dz]  # type: ignore[list-item]

    return {
        "statistics": (statistics, plain_statistics),
        "choose": (choose, plain_choose),
        "layer_gradients": (gradients, plain_gradients),
    }


def time_convolutions(
    watch: Stopwatch, images: int, dtype: torch.dtype, flops: float
) -> Iterator[Row]:
    from adafilter_dist.models.inference.selected_triton import selected_conv

    for conv in CONVS:
        x = noise(images, conv.channels, conv.size, dtype)
        depth = conv.channels * conv.kernel**2
        shape = (2, conv.filters, conv.kernel, conv.kernel, conv.channels)
        weight = (torch.randn(shape, device=DEVICE) / depth**0.5).to(dtype)
        bias = torch.randn(2, conv.filters, device=DEVICE)
        bits = torch.rand(images, conv.filters, device=DEVICE) > 0.5
        stride, padding = (conv.stride, conv.stride), (conv.padding, conv.padding)
        banks = [(weight[i].permute(0, 3, 1, 2), bias[i].to(dtype)) for i in (0, 1)]

        def chosen() -> Tensor:
            return selected_conv(x, weight, bias, bits, stride=stride, padding=padding)  # noqa: B023

        def plain(bank: int = 0) -> Tensor:
            return F.conv2d(x, *banks[bank], stride, padding)  # noqa: B023

        seconds = watch.seconds(chosen)
        rate = conv_flops(conv, images) / seconds
        yield Row(
            kernel="selected_conv",
            layer=conv.label,
            ms=seconds * 1e3,
            rate=rate / 1e12,
            unit="TFLOP/s",
            share=rate / flops,
            torch_ms=watch.seconds(plain) * 1e3,
            error=distance([chosen()], [torch.where(bits[:, :, None, None], plain(1), plain(0))]),
        )


def noise(images: int, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    y = torch.randn(images, channels, side, side, device=DEVICE).to(dtype)
    return y.contiguous(memory_format=torch.channels_last)


def distance(results: Tensor | Iterable[Tensor], expected: Tensor | Iterable[Tensor]) -> float:
    """Largest difference, relative to the largest expected value, over all tensors."""
    if isinstance(results, Tensor) and isinstance(expected, Tensor):
        largest = expected.abs().max().clamp(min=1e-30)
        return float(((results.double() - expected.double()).abs().max() / largest).item())
    return max(map(distance, results, expected))


if __name__ == "__main__":
    sys.exit(main())
