"""Launches of Triton kernels, prepared once: the next with the same numbers skips Triton's binder.

Triton binds and specialises all arguments of every launch, which takes the host longer than the
launch itself. Kernels depend on the dtypes of tensors, on whether they begin at multiples of 16
bytes, and on the numbers; a `Launch` has fixed numbers, and keeps a compiled kernel for each kind
of tensors. Importing this needs triton.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver
from triton.runtime.jit import JITFunction

Place = tuple[Any, Any]
_ALIGNED = 16  # bytes
# What Triton calls around each launch; profilers register there.
_RUNTIME: Any = getattr(getattr(triton, "knobs", None), "runtime", None)
_PREPARES = _RUNTIME is not None and not _RUNTIME.interpret
_backends: dict[Any, str] = {}


def here(x: Tensor) -> Place | None:
    """Device and stream that kernels on x are launched on now.

    None where Triton has to do it: in its interpreter, on other devices than the current one and on
    other GPUs than NVIDIA's, and where somebody listens to launches.
    """
    if not _PREPARES:
        return None
    enter, leave = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        return None
    active = driver.active
    device = active.get_current_device()
    backend = _backends.get(device)
    if backend is None:
        backend = _backends[device] = active.get_current_target().backend
    index = x.get_device()
    if backend != "cuda" or (index >= 0 and index != device):
        return None
    return device, active.get_current_stream(device)


class Launch:
    """A kernel with its grid and its numbers; called with a place and the tensors.

    The kernel's parameters are tensors, then numbers, then constants. `constants` may also hold
    options of the compiler.
    """

    __slots__ = ("_constants", "_grid", "_kept", "_kernel", "_numbers")

    def __init__(
        self, kernel: Any, grid: int, numbers: tuple[int, ...], constants: Mapping[str, Any]
    ) -> None:
        self._kernel, self._grid = kernel, grid
        self._numbers, self._constants = numbers, constants
        self._kept: dict[Any, tuple[Any, ...]] = {}

    def __call__(self, place: Place | None, *tensors: Tensor) -> None:
        """Launch it; `place` is that of `here`."""
        if place is None:
            self._by_triton(tensors)
            return
        device, stream = place
        addresses = [each.data_ptr() for each in tensors]
        kind: Any = tuple([each.dtype for each in tensors])
        if math.gcd(_ALIGNED, *addresses) != _ALIGNED:
            kind = (kind, *[address % _ALIGNED == 0 for address in addresses])
        kept = self._kept.get((device, kind))
        if kept is None:
            self._keep((device, kind), self._by_triton(tensors), len(tensors))
            return
        run, function, metadata, rest, _ = kept
        run(self._grid, 1, 1, stream, function, metadata, None, None, None, *addresses, *rest)

    def _by_triton(self, tensors: tuple[Tensor, ...]) -> Any:
        with torch.cuda.device_of(tensors[0]):
            return self._kernel[(self._grid,)](*tensors, *self._numbers, **self._constants)

    def _keep(self, key: Any, compiled: Any, tensors: int) -> None:
        """What later launches of this kind call; nothing where this Triton works in another way."""
        kernel = self._kernel
        wanted = ("run", "function", "packed_metadata")
        if not isinstance(kernel, JITFunction) or not all(hasattr(compiled, n) for n in wanted):
            return
        # In the order of the kernel's parameters, constants last.
        names = kernel.arg_names
        first = tensors + len(self._numbers)
        if list(kernel.constexprs) != list(range(first, len(names))):
            return
        rest = (*self._numbers, *(self._constants[name] for name in names[first:]))
        # The kernel itself is kept too: it unloads its code when it goes.
        parts = (compiled.run, compiled.function, compiled.packed_metadata, rest, compiled)
        self._kept[key] = parts
