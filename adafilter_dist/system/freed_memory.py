"""A setting of the C library: what becomes of memory that is freed. Imports no torch."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
_NEVER, _LARGEST = -1, 2**31 - 1
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let this process use again what it has freed; whether it does so now.

    glibc gives blocks of more than 32 MiB back to the system, and large ones at the heap's end. The
    next step gets them anew, and each page is filled with zeros first: a tenth of the time of a
    step on a CPU. Without effect where the user has set one of these limits, or glibc is not there.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER)
    return bool(kept)
