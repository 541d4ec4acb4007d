"""What this machine can do at best: floating-point operations and bytes a second, measured.

The rate of arithmetic is the largest that any of a few matrix products and convolutions reaches, in
the network's precision and with its threads; that of memory the larger of a copy's (2 passes) and a
sum's (3 passes) over tensors far larger than any cache. A floor is computed with both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

MIB = 2**20
ENOUGH = 1.0  # s, on one piece of work


@dataclass(frozen=True)
class Machine:
    """FLOP/s (a multiplication and an addition are two) and bytes/s."""

    flops: float
    bandwidth: float

    def best(self, other: Machine) -> Machine:
        """The higher of each, of two measurements."""
        return Machine(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))

    def __str__(self) -> str:
        return f"{self.flops / 1e9:,.0f} GFLOP/s, {self.bandwidth / 1e9:,.1f} GB/s"


def measure_machine(device: torch.device, dtype: torch.dtype, *, scale: float = 1.0) -> Machine:
    """Measure, a few seconds; `scale` < 1 makes the tensors smaller, for tests."""
    with torch.no_grad():
        flops = max(count / least(work, device) for count, work in arithmetic(device, dtype, scale))
        bandwidth = max(count / least(work, device) for count, work in copies(device, scale))
    return Machine(flops, bandwidth)


Work = tuple[float, Callable[[], Tensor]]


def arithmetic(device: torch.device, dtype: torch.dtype, scale: float) -> Iterator[Work]:
    """(FLOPs, work): square matrix products, convolutions like those in the middle of a ResNet."""
    cuda = device.type == "cuda"
    for side in (4096, 8192) if cuda else (1024, 2048):
        n = max(64, int(side * scale))
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        yield 2.0 * n**3, partial(torch.matmul, a, b)
    images = max(1, int((128 if cuda else 16) * scale))
    for c_in, c_out, kernel, side in ((128, 128, 3, 28), (256, 256, 3, 14), (256, 1024, 1, 14)):
        x = torch.randn(images, c_in, side, side, device=device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        w = torch.randn(c_out, c_in, kernel, kernel, device=device).to(dtype)
        w = w.contiguous(memory_format=torch.channels_last)
        count = 2.0 * images * side * side * c_in * c_out * kernel * kernel
        yield count, partial(F.conv2d, x, w, padding=kernel // 2)


def copies(device: torch.device, scale: float) -> Iterator[Work]:
    """(bytes, work) over tensors of 256 MiB, on a GPU 1 GiB."""
    size = int((1024 if device.type == "cuda" else 256) * MIB * scale) // 4
    a, b, c = (torch.ones(size, device=device) for _ in range(3))
    yield 2.0 * a.nbytes, partial(b.copy_, a)
    yield 3.0 * a.nbytes, partial(torch.add, a, b, out=c)


def least(work: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest run: of five after one that does not count, of fewer slow ones."""
    rounds: list[float] = []
    while len(rounds) < 6 and (len(rounds) < 2 or sum(rounds) < ENOUGH):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rounds.append(time.perf_counter() - began)
    return min(rounds[1:])
