"""One picture after another: read, checked, made RGB, resized; and what is learned of it."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.data.stored.store import MOST_BYTES, Format, Record
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import Reading, decoding_of, read_picture, to_stored_size

# Cameras and scanners have these; a file that uses 15 bits is as bright as pictures may be.
_DEPTHS = (8, 10, 12, 14)


@dataclass(frozen=True)
class Stored:
    """A picture that went into the store.

    ``content`` is the sha256 of its source, ``pixels`` that of the stored pixels, ``brightest`` its
    largest value if it is 16-bit gray.
    """

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
    def domains(self) -> list[int]:
        """The domain of each sample, by its number."""
        return [sample.domain for sample in self._samples]

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
            pixels, reading = _decode(content, self._stored_size)
            if self._most_bytes is not None and pixels.size > self._most_bytes:
                height, width = pixels.shape[:2]
                raise BadPicture(
                    f"{width:,}x{height:,} px once stored, {pixels.size:,} bytes of at most "
                    f"{self._most_bytes:,}; lower data.stored_size or use data.stored_format=jpg"
                )
        except BadPicture as error:
            self._results[position] = str(error)
            return None
        # The pixels tell duplicates that differ in their metadata alone.
        source = _source_hash(content, reading.decoding)
        self._results[position] = Stored(sample, source, _hash(pixels), reading.brightest)
        return pixels, sample.label


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


def stored_pixels(content: bytes | NDArray[Any], stored_size: int) -> NDArray[np.uint8]:
    """What a store keeps of a picture file's bytes, or of pixels: contiguous uint8 RGB (H, W, 3).

    The shortest side is ``stored_size`` px long. Raises BadPicture.
    """
    return _decode(content, stored_size)[0]


def content_hash(sample: Sample) -> bytes:
    """sha256 of the file, or of the pixels and their shape. Raises BadPicture.

    It changes where a later decoding reads the picture in another way than the first did.
    """
    content = read(sample)
    return _source_hash(content, decoding_of(content))


def dark_notes(stored: Sequence[Stored]) -> list[str]:
    """A line where no 16-bit picture of the set is brighter than 14 bits go, else nothing.

    Such pictures use a few of their bits, and are stored almost black.
    """
    brightest = [picture.brightest for picture in stored if picture.brightest is not None]
    most = max(brightest, default=0)
    depth = next((bits for bits in _DEPTHS if most < 1 << bits), None)
    if not brightest or depth is None:
        return []
    pictures = f"{len(brightest):,} 16-bit pictures" if len(brightest) > 1 else "one 16-bit picture"
    return [
        f"warning: the set is dark: the brightest value of {pictures} is {most:,} of 65,535, which "
        f"looks like {depth}-bit pixels in 16-bit files; they are stored as they are, at most "
        f"{most * 255 / 65535:.0f} of 255; multiply them by {1 << 16 - depth} and prepare again"
    ]


@contextmanager
def quiet_pictures() -> Iterator[None]:
    """Without the warnings of broken EXIF blocks and odd palettes: they do no harm to the pixels.

    Without Pillow's log of broken files too: they are listed. Around everything, because filters
    and loggers are the process's and not a thread's.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _decode(content: bytes | NDArray[Any], stored_size: int) -> tuple[NDArray[np.uint8], Reading]:
    reading = read_picture(content, stored_size)
    return np.array(to_stored_size(reading.picture, stored_size)), reading


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
