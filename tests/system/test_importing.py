"""Imports look for no garbage, and leave the collector as it was."""

from __future__ import annotations

import gc
import subprocess
import sys

from adafilter_dist.system.importing import importing

_PROGRAM = """
import gc
from adafilter_dist.system.importing import importing
before = gc.get_freeze_count()
with importing():
    assert not gc.isenabled()
    import triton
assert gc.isenabled() and gc.get_freeze_count() > before
"""


def test_the_collector_is_on_again_and_nothing_is_said_at_the_end() -> None:
    """Frozen modules make Triton's bindings print pages of leaks when the process ends."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
