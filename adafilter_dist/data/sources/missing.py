"""Words the error for a folder or file that is missing."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.errors import nearest


def no_such(kind: str, path: Path) -> str:
    """``no such KIND``, with the nearest name beside it, or the folder above that is missing too.

    ``kind`` is ``folder`` or ``file``.
    """
    above = path.parent
    if not above.is_dir():
        while not above.parent.is_dir():
            above = above.parent
        return f"no such {kind} ({above} is missing)"
    try:
        beside = [entry.name for entry in above.iterdir() if not entry.name.startswith(".")]
    except OSError:
        beside = []
    return f"no such {kind}{nearest(path.name, beside)}"
