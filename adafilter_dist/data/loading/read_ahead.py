"""Tells the kernel which records of a store are read next.

A store is mapped and read at random. Left to itself the kernel either reads a lot around each
record, or fetches it page by page, waiting for the disk each time.

Importing this module imports numba.
"""

from __future__ import annotations

import mmap
from typing import Any

from numba.core.types import ExternalFunction, int32, int64

from adafilter_dist.data.loading.compiling import compiled

PAGE_SIZE = mmap.PAGESIZE
_WILL_NEED = mmap.MADV_WILLNEED
_advise: Any = ExternalFunction("madvise", int32(int64, int64, int32))


@compiled
def read_ahead(content, index, page_size):  # type: ignore[no-untyped-def]
    """Have the kernel read the records at ``index`` (n, 5) of ``content``, see `Store.index`.

    Waits for none of them. Costs next to nothing where they are in memory.
    """
    address = int64(content.ctypes.data)
    for k in range(len(index)):
        first = address + index[k, 0]
        start = first - first % page_size
        # Only advice: where the kernel does not take it, the record is read when it is needed.
        _advise(start, first + index[k, 1] - start, _WILL_NEED)
