"""Whether the stores will fit on the disk, asked before anything is written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from adafilter_dist.data.prepare.pictures import stored_pixels
from adafilter_dist.data.prepare.read_pictures import read
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.disk import require_space

_LOOKED_AT = 32
_MARGIN = 1.2


def require_store_space(place: Path, samples: Sequence[Sample], data: Data) -> None:
    """UserError if ``place`` has less free space than the stores are expected to take.

    The expectation is the mean of a few pictures spread over the data set, and a fifth more.
    """
    few = samples[:: max(1, len(samples) // _LOOKED_AT)]
    sizes = [size for sample in few if (size := _stored_bytes(sample, data)) is not None]
    if not sizes:
        return
    needed = _MARGIN * sum(sizes) / len(sizes) * len(samples)
    advice = "set data.prepared to a folder with more space, or lower data.stored_size"
    if data.stored_format == "raw":
        advice += " or use data.stored_format=jpg"
    what = f"{len(samples):,} pictures of {data.stored_size} px"
    require_space(place, needed, what, advice)


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
