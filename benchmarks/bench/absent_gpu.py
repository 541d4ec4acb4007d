"""A GPU's code path on a machine without one: launches are prepared, and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from adafilter_dist.models.ops import device_kind

CAPABILITY = 90


@dataclass
class Launches:
    """How many Triton kernels were launched."""

    count: int = 0


class _AbsentDriver:
    def get_current_device(self) -> int:
        return 0

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


@contextmanager
def absent_gpu() -> Iterator[Launches]:
    """Inside, gated layers on CPU tensors take the GPU's path.

    Triton binds the arguments of each launch, and finds its kernel, as it does on a GPU; where the
    driver would be called a counter is. What kernels would write stays uninitialised.
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
            patch.object(JITFunction, "_do_compile", compile_nothing),
            patch.object(device_kind, "on_gpu", lambda x: True),
        ):
            yield launches
    finally:
        driver._active = None
        for cache, key in caches:
            del cache[key]
