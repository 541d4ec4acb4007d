"""Small pictures of the test set as data URIs."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Damaged, Store
from adafilter_dist.report.page.blocks import Picture

_SIDE = 144
_LOSSLESS = 64  # pixels up to which a lossless picture is small, too


def thumbnails(
    prepared: Prepared, positions: Sequence[int], lines: Sequence[Sequence[str]]
) -> list[Picture]:
    """The test pictures at ``positions``, each with its lines; those that are damaged left out."""
    store = Store(prepared.test_store)
    names = _names(prepared.folder / "test.csv", positions)
    pictures = []
    for position, each in zip(positions, lines, strict=True):
        try:
            picture = Image.fromarray(store.read(position))
        except Damaged:
            continue
        picture.thumbnail((_SIDE, _SIDE))
        source = io.BytesIO()
        lossless = max(picture.size) <= _LOSSLESS
        picture.save(source, "WEBP", quality=80, lossless=lossless, method=4)
        encoded = base64.b64encode(source.getvalue()).decode("ascii")
        title = names.get(position, f"test picture {position}")
        size = (picture.width, picture.height)
        pictures.append(Picture(f"data:image/webp;base64,{encoded}", *size, title, each))
    return pictures


def _names(path: Path, positions: Sequence[int]) -> dict[int, str]:
    """Paths of pictures by position, from the list beside the prepared pictures."""
    wanted, names = set(positions), dict[int, str]()
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for position, row in enumerate(csv.DictReader(file)):
                if position in wanted:
                    names[position] = row["path"]
    except (OSError, KeyError, csv.Error):
        return {}
    return names
