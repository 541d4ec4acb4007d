"""Quick imports: a sixth of the time of importing PyTorch goes into looking for garbage."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of much: no garbage is looked for, as nothing that is imported is garbage.

    What is there afterwards is not looked through later, either, until the process ends.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            atexit.register(gc.unfreeze)  # or nanobind, which is in Triton, complains of leaks
            gc.enable()
