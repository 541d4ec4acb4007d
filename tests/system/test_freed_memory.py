"""Freed memory is used again, or given back as the user has set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SIZE = 64 * 2**20
SCRIPT = f"""
import ctypes, resource
from adafilter_dist.system.freed_memory import keep_freed_memory

kept = keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = c.malloc({SIZE})
    ctypes.memset(block, 1, {SIZE})
    c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(kept, faults(), faults())
"""


@pytest.mark.parametrize("name", [None, "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_a_block_that_was_freed_is_there_at_once(name: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if "MALLOC" not in key}
    if name is not None:
        environment[name] = "131072"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    kept, first, second = done.stdout.split()
    # One fault a page, or a huge page.
    least = SIZE // (2 * 2**20)
    assert int(first) >= least
    assert (kept == "True") == (int(second) < least) == (name is None)
