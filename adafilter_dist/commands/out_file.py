"""The file that a word after --out names."""

from __future__ import annotations

import os
from pathlib import Path

from adafilter_dist.errors import UserError, printable
from adafilter_dist.pictures.formats import is_picture


def out_file(word: Path) -> Path:
    """The file to replace, which is that behind a link.

    UserError for a folder; for a device or a pipe, in whose place there would be a file; and for
    the name of a picture: a shell puts one there for a pattern.
    """
    path = Path(os.path.realpath(word.expanduser()))
    out = f"--out {printable(word)}"
    if path.is_dir():
        raise UserError(f"{out}: a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{out}: a device or a pipe; name a file")
    if is_picture(path.name):
        raise UserError(f"{out}: the name of a picture, which would be overwritten; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{out}: no such folder: {printable(path.parent)}")
    return path
