"""Which files are pictures: those of the formats that the installed Pillow opens, with exceptions.

The exceptions are `_NOT_PICTURES`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import cache

from PIL import Image

# Never opened, whatever a file is called.
_NOT_PICTURES = {
    "EPS",  # a program; Pillow has it run by Ghostscript
    "WMF",  # drawing commands, for Windows to carry out
    *("BUFR", "FITS", "GRIB", "HDF5", "MCIDAS", "SPIDER"),  # measurements
    *("IPTC", "MPEG"),  # a wrapping and a film
    *("IMT", "XVTHUMB"),  # without a suffix of their own
}
# Of the files that are not read, these are named in the advice to convert them; the others are only
# counted. Whether .webp, .avif and .jp2 are read depends on how Pillow was built.
_OTHER_PICTURES = {
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
    *(".avif", ".avifs", ".emf", ".eps", ".jp2", ".jxl", ".pdf", ".ps"),
    *(".dcm", ".exr", ".fit", ".fits", ".hdr", ".npy", ".svg", ".webp", ".wmf", ".xcf"),
}
_HEIF = {".heic", ".heics", ".heif", ".heifs", ".hif"}
_SUFFIXES_NAMED = 6


def picture_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, the usual ones first."""
    _register()
    return tuple(name for name in Image.ID if is_picture_format(name))


def is_picture_format(name: str) -> bool:
    """Whether files of the format, named as Pillow does, are pictures."""
    return name not in _NOT_PICTURES


@cache
def _register() -> None:
    """Register all formats of Pillow, and those of plugins: HEIF, if pillow-heif is installed."""
    Image.init()
    # One that does not fit this Pillow is as good as none.
    with contextlib.suppress(Exception):
        importlib.import_module("pillow_heif").register_heif_opener()


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of those formats, in lower case, each with its dot."""
    formats = picture_formats()
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in formats
    )


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case with its dot, or an empty string."""
    return os.path.splitext(name)[1].lower()


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture (hidden ones such as ._x.jpg are not)."""
    return not name.startswith(".") and suffix_of(name) in picture_suffixes()


def unread_by_suffix(names: Iterable[str]) -> str:
    """Files that are not read, counted by suffix: ``12 .heic, 3 .txt, 1 without a suffix``.

    Those that are pictures of a kind come with the advice to convert them.
    """
    counts = Counter(map(suffix_of, names))
    shown = counts.most_common(_SUFFIXES_NAMED)
    parts = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in shown]
    if len(counts) > len(shown):
        rest = sum(counts.values()) - sum(count for _, count in shown)
        parts.append(f"{rest:,} of {len(counts) - len(shown)} other suffixes")
    if _HEIF.intersection(counts):
        parts[-1] += "; `pip install pillow-heif` has .heic read"
    others = sorted(_OTHER_PICTURES.intersection(counts))
    if others:
        parts[-1] += f"; convert {', '.join(others)} to PNG or JPEG to use them"
    return ", ".join(parts)
