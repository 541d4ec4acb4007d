"""Triton's real compiler on a machine without a GPU: launches compile, and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class _Absent:
    """A CUDA device that is only compiled for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> GPUTarget:
        return self._target  # kernels are kept by device: each capability is one

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def compiled(capability: int) -> Iterator[list[Any]]:
    """Collects what is launched meanwhile, compiled down to machine code for `capability`."""
    kernels: list[Any] = []

    def launch(kernel: Any, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: kernels.append(
            kernel.run(*args, grid=grid, warmup=True, **options)
        )

    driver.set_active(_Absent(capability))
    with patch.object(JITFunction, "__getitem__", launch):
        yield kernels
