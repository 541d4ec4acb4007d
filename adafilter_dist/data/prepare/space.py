"""Whether the stores will fit on the disk, asked before anything is written."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from adafilter_dist.data.prepare.pictures import stored_pixels
from adafilter_dist.data.prepare.read_pictures import read
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.errors import UserError
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.recipe.sections.data import Data

_LOOKED_AT = 32
_MARGIN = 1.2


def require_space(place: Path, samples: Sequence[Sample], data: Data) -> None:
    """UserError if ``place`` has less free space than the stores are expected to take.

    The expectation is the mean of a few pictures spread over the data set, and a fifth more.
    """
    few = samples[:: max(1, len(samples) // _LOOKED_AT)]
    sizes = [size for sample in few if (size := _stored_bytes(sample, data)) is not None]
    if not sizes:
        return
    needed = _MARGIN * sum(sizes) / len(sizes) * len(samples)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place}: {len(samples):,} pictures of {data.stored_size} px take about "
            f"{_readable(needed)}, and only {_readable(free)} are free; set data.prepared to a "
            "folder with more space, or lower data.stored_size"
            + (" or use data.stored_format=jpg" if data.stored_format == "raw" else "")
        )


def _stored_bytes(sample: Sample, data: Data) -> int | None:
    try:
        pixels = stored_pixels(read(sample), data.stored_size)
    except BadPicture:
        return None
    if data.stored_format == "raw":
        return pixels.size
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=data.jpeg_quality)
    return encoded.tell()


def _readable(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
