"""What the model of the disk does not know is refused, so that it can miss nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.powercut.operations import TraceError
from tests.powercut.replay import record

BEGIN = """
import mmap, os, sys
root = sys.argv[1]
old = os.open(f"{root}/old", os.O_RDWR)
"""


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("mmap.mmap(old, 4)[0:1] = b'x'", "writing through a mapping"),
        ("os.open(f'{root}/old', os.O_WRONLY | os.O_SYNC)", "not modelled.*O_SYNC"),
        ("os.symlink('old', f'{root}/link')", "symlink is not modelled"),
        ("os.chdir(root); os.mkdir('new')", "a relative path|chdir is not modelled"),
        ("os.rename(f'{root}/old', f'{root}.moved')", "outside the recorded folder"),
        ("os.dup2(old, 100); os.write(100, b'x')", "dup2 is not modelled"),
        (
            "m = os.memfd_create('m'); os.write(m, b'new'); os.sendfile(old, m, 0, 3)",
            "the copied bytes are not in the trace",
        ),
        ("os.read(old, 2); os.write(old, b'x')", "model and disk differ in .*old"),
    ],
)
def test_it_is_refused(code: str, why: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "old").write_bytes(b"1234")
    with pytest.raises(TraceError, match=why):
        record([sys.executable, "-c", BEGIN + code], root, tmp_path / "log")
