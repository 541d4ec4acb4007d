"""A GPU's code path on a machine without one: launches are prepared, and compute nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from adafilter_dist.models.ops import device_kind

CAPABILITY = 90
_NUMBERS = itertools.count(1000)


@dataclass
class Launches:
    """How many Triton kernels were launched."""

    count: int = 0


class _AbsentDriver:
    def __init__(self) -> None:
        # Kernels are kept by device: no number that a GPU has, nor one of before.
        self._device = next(_NUMBERS)

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


class _Kernel:
    """Stands for a compiled kernel: its launch is counted."""

    function = packed_metadata = None

    def __init__(self, launches: Launches) -> None:
        self._launches = launches

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        self._launches.count += 1


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *more: Any,
) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    made = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    shape = (len(x), len(weight), *made)
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, *more: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    of_x, of_weight, of_bias = more[-1]
    return (
        torch.empty_like(x) if of_x else None,
        torch.empty_like(weight) if of_weight else None,
        dy.new_empty(len(weight)) if of_bias else None,
    )


@contextmanager
def _no_convolutions() -> Iterator[None]:
    """Inside, they allocate their results and compute nothing."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution", _convolution, "CPU")
    library.impl("convolution_backward", _convolution_backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


@contextmanager
def absent_gpu() -> Iterator[Launches]:
    """Inside, gated layers on CPU tensors take the GPU's path.

    Triton binds the arguments of each launch, and finds its kernel, as it does on a GPU; where the
    driver would be called a counter is. Convolutions are left out, too: a GPU computes them while
    the host goes on. What kernels would write stays uninitialised.
    """
    launches = Launches()
    kernel = _Kernel(launches)
    caches: list[tuple[dict[str, Any], str]] = []

    def compile_nothing(self: Any, key: str, signature: Any, device: int, *more: Any) -> _Kernel:
        cache = self.device_caches[device][0]
        caches.append((cache, key))
        cache[key] = kernel
        return kernel

    driver.set_active(_AbsentDriver())
    try:
        with (
            _no_convolutions(),
            patch.object(JITFunction, "_do_compile", compile_nothing),
            patch.object(device_kind, "on_gpu", lambda x: True),
        ):
            yield launches
    finally:
        driver._active = None
        for cache, key in caches:
            del cache[key]
