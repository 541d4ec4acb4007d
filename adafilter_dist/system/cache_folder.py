"""Where the package keeps what it can make again: data it fetched, kernels it compiled."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$ADAFILTER_CACHE, else adafilter in $XDG_CACHE_HOME, else ~/.cache/adafilter."""
    if "ADAFILTER_CACHE" in os.environ:
        return Path(os.environ["ADAFILTER_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adafilter"
