"""Reading the pictures of a split, and what is learned of them on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.prepare.pictures import stored_picture
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.data.stored.store import MOST_BYTES, Format, Record
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import decoding_of


def read(sample: Sample) -> bytes | NDArray[np.uint8]:
    """The picture's file, or its pixels. Raises BadPicture where the file cannot be read."""
    if sample.pixels is not None:
        return sample.pixels
    try:
        return sample.path.read_bytes()
    except FileNotFoundError:
        raise BadPicture("no such file") from None
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror or error}") from None


def content_hash(sample: Sample) -> bytes:
    """sha256 of the file, or of the pixels and their shape. Raises BadPicture.

    It changes where a later decoding reads the picture in another way than the first did.
    """
    content = read(sample)
    return _source_hash(content, decoding_of(content))


@dataclass(frozen=True)
class Stored:
    """A picture that went into the store; ``brightest`` is its largest value if 16-bit gray."""

    sample: Sample
    content: bytes
    pixels: bytes
    brightest: int | None


class PictureReader:
    """Reads one split's pictures as records for the store; afterwards says which were bad.

    Records may be called in any order and from many threads: each writes to a place of its own.
    """

    def __init__(
        self, samples: Sequence[Sample], stored_size: int, stored_format: Format = "jpg"
    ) -> None:
        self._samples = samples
        self._stored_size = stored_size
        self._most_bytes = MOST_BYTES if stored_format == "raw" else None
        self._results: list[Stored | str] = [""] * len(samples)

    def records(self) -> list[Record]:
        """One a sample, giving its pixels and label, or None for a bad picture."""
        return [partial(self._record, position) for position in range(len(self._samples))]

    @property
    def stored(self) -> list[Stored]:
        """The pictures in the store, in its order."""
        return [result for result in self._results if isinstance(result, Stored)]

    @property
    def bad(self) -> list[tuple[Sample, str]]:
        """The pictures left out, and why."""
        return [
            (sample, result)
            for sample, result in zip(self._samples, self._results, strict=True)
            if isinstance(result, str)
        ]

    def _record(self, position: int) -> tuple[NDArray[np.uint8], int] | None:
        sample = self._samples[position]
        try:
            content = read(sample)
            picture = stored_picture(content, self._stored_size)
            self._require_room(picture.pixels)
        except BadPicture as error:
            self._results[position] = str(error)
            return None
        # The pixels tell duplicates that differ in their metadata alone.
        self._results[position] = Stored(
            sample,
            _source_hash(content, picture.decoding),
            _hash(picture.pixels),
            picture.brightest,
        )
        return picture.pixels, sample.label

    def _require_room(self, pixels: NDArray[np.uint8]) -> None:
        if self._most_bytes is not None and pixels.size > self._most_bytes:
            height, width = pixels.shape[:2]
            raise BadPicture(
                f"{width:,}x{height:,} px once stored, {pixels.size:,} bytes of at most "
                f"{self._most_bytes:,}; lower data.stored_size or use data.stored_format=jpg"
            )


def _source_hash(content: bytes | NDArray[np.uint8], decoding: int) -> bytes:
    digest = _hash(content)
    if decoding == 1:
        return digest
    return hashlib.sha256(digest + f"decoding {decoding}".encode()).digest()


def _hash(content: bytes | NDArray[np.uint8]) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    digest = hashlib.sha256(repr(content.shape).encode())
    digest.update(np.ascontiguousarray(content).data)
    return digest.digest()
