"""One picture after another: read, checked, made RGB, resized; and what is learned of it."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.data.stored.layout import MOST_BYTES, Format
from adafilter_dist.data.stored.store import Record
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import (
    Reading,
    content_of,
    decoding_of,
    read_picture,
    to_stored_size,
)

# Cameras and scanners have these; a file that uses 15 bits is as bright as pictures may be.
_DEPTHS = (8, 10, 12, 14)
# Of the disk, not of the picture.
_MISSING, _UNREADABLE = "no such file", "cannot be read"


@dataclass(frozen=True)
class Read:
    """What is learned of a picture that is stored.

    ``content`` is the sha256 of its source, ``pixels`` that of the stored pixels, ``brightest`` its
    largest value if it is 16-bit gray.
    """

    content: bytes
    pixels: bytes
    brightest: int | None


Learned = Read | str
"""What is learned of a picture, or why it is left out."""


class PictureReader(Sequence[Record]):
    """One split's pictures as records for the store.

    A record gives a picture's pixels and label, or None for a bad one; then ``take`` says what was
    learned of it. Records may be called in any order and from many threads.
    """

    def __init__(
        self, samples: Sequence[Sample], stored_size: int, stored_format: Format = "jpg"
    ) -> None:
        self._samples = samples
        self._stored_size = stored_size
        self._most_bytes = MOST_BYTES if stored_format == "raw" else None
        self._learned: dict[int, Learned] = {}

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, position: int) -> Record: ...
    @overload
    def __getitem__(self, position: slice) -> list[Record]: ...
    def __getitem__(self, position: int | slice) -> Record | list[Record]:
        if isinstance(position, slice):
            return [self[each] for each in range(len(self))[position]]
        return partial(self._record, range(len(self))[position])

    @property
    def domains(self) -> NDArray[np.uint16]:
        """The domain of each sample, by its number."""
        return np.fromiter((sample.domain for sample in self._samples), np.uint16, len(self))

    def take(self, position: int) -> Learned:
        """What was learned of a picture when its record was called; it is forgotten then."""
        return self._learned.pop(position)

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
            self._learned[position] = str(error)
            return None
        # The pixels tell duplicates that differ in their metadata alone.
        source = _source_hash(content, reading.decoding)
        self._learned[position] = Read(source, _hash(pixels), reading.brightest)
        return pixels, sample.label


def read(sample: Sample) -> bytes | NDArray[np.uint8]:
    """The picture's file, or its pixels. Raises BadPicture where the file cannot be read."""
    if sample.pixels is not None:
        return sample.pixels
    try:
        return content_of(sample.path)
    except FileNotFoundError:
        raise BadPicture(_MISSING) from None
    except OSError as error:
        raise BadPicture(f"{_UNREADABLE}: {error.strerror or error}") from None


def readable_again(sample: Sample, reason: str) -> bool:
    """Whether a picture was left out because its file could not be read, and now can be."""
    if not reason.startswith((_MISSING, _UNREADABLE)):
        return False
    try:
        read(sample)
    except BadPicture:
        return False
    return True


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


def dark_notes(brightest: NDArray[np.int64]) -> list[str]:
    """A line where no 16-bit picture of the set is brighter than 14 bits go, else nothing.

    Such pictures use a few of their bits, and are stored almost black.
    """
    most = int(brightest.max(initial=0))
    depth = next((bits for bits in _DEPTHS if most < 1 << bits), None)
    if not len(brightest) or depth is None:
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
