"""The pictures that loaders are compared on: one set of JPEGs, stored as each loader wants it."""

from __future__ import annotations

import importlib.util
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.data.stored.store import Format, Store, write_store

SHARDS = 16
_CHUNK = "8MB"


@dataclass(frozen=True)
class Pictures:
    """A folder with a store, and what was made of it: files, shards (tar), chunks (LitData)."""

    folder: Path
    store: Path
    count: int

    @property
    def files(self) -> Path:
        """``LABEL/NUMBER.jpg``, the stored bytes."""
        return self.folder / "files"

    def listed(self) -> list[tuple[str, int]]:
        """(file, label) of each, by number."""
        return [(str(path), int(path.parent.name)) for path in sorted(self.files.glob("*/*.jpg"))]

    @property
    def shards(self) -> list[str]:
        """WebDataset's."""
        return sorted(map(str, (self.folder / "shards").glob("*.tar")))

    @property
    def chunks(self) -> Path:
        """LitData's."""
        return self.folder / "chunks"

    def every_file(self) -> list[Path]:
        """All that a loader may read."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


def make_up(path: Path, count: int, side: int, format: Format) -> Path:
    """A store of pictures with waves, patches and noise, about as hard to decode as photographs."""

    def record(number: int) -> tuple[NDArray[np.uint8], int]:
        return picture(number, side), number % 10

    records = [partial(record, number) for number in range(count)]
    return write_store(path, records, format=format, num_workers=2).path


def make_probes(path: Path, count: int, side: int) -> Path:
    """A store of square JPEGs, each with a label of its own."""

    def record(number: int) -> tuple[NDArray[np.uint8], int]:
        return np.ascontiguousarray(picture(number, side)[:side, :side]), number

    return write_store(path, [partial(record, number) for number in range(count)]).path


def spread(store: Path, folder: Path) -> Pictures:
    """The pictures of a store as files and shards too, and as chunks where LitData is installed."""
    stored = Store(store)
    labels = stored.labels.tolist()
    for label in set(labels):
        (folder / "files" / f"{label:05}").mkdir(parents=True)
    for number, label in enumerate(labels):
        _write_jpeg(stored, number, folder / "files" / f"{label:05}" / f"{number:07}.jpg")
    (folder / "shards").mkdir()
    file_of_label = folder / "label"
    for first in range(min(SHARDS, len(labels))):
        with tarfile.open(folder / "shards" / f"{first:03}.tar", "w") as shard:
            for number in range(first, len(labels), SHARDS):
                label = labels[number]
                file_of_label.write_text(str(label))
                file = folder / "files" / f"{label:05}" / f"{number:07}.jpg"
                shard.add(file, f"{number:07}.jpg")
                shard.add(file_of_label, f"{number:07}.cls")
    pictures = Pictures(folder, store, len(labels))
    if importlib.util.find_spec("litdata") is not None:
        _write_chunks(pictures)
    return pictures


def picture(number: int, side: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) with the given shortest side."""
    draws = np.random.default_rng(number)
    sides = [side, int(draws.integers(side, 3 * side // 2))]
    height, width = sides if number % 2 else sides[::-1]
    y, x = np.mgrid[:height, :width].astype(np.float32) / side
    waves = [np.sin(x * draws.uniform(1, 40) + y * draws.uniform(1, 40)) for _ in range(3)]
    pixels = 128 + 70 * np.stack(waves, axis=2)
    for _ in range(20):
        top, left = draws.integers(0, side - 20, 2)
        pixels[top : top + draws.integers(8, 80), left : left + 60] = draws.integers(0, 256, 3)
    pixels += draws.normal(0, 5, (height, width, 1)).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def photograph(number: int, shortest: int, longest: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) with the spectrum of photographs: amplitude falls with the frequency.

    At quality 90 those of 512 px have 24 to 84 kB, 50 on average, as Food-101's.
    """
    draws = np.random.default_rng(number)
    shape = (shortest, longest) if number % 4 < 2 else (longest, shortest)
    down, across = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    frequency = np.hypot(down, across).clip(1 / longest)
    falls_by = draws.uniform(1.3, 1.9)

    def field(exponent: float) -> NDArray[np.float64]:
        real, imaginary = draws.normal(size=(2, *frequency.shape))
        values = np.fft.irfft2((real + 1j * imaginary) / frequency**exponent, shape)
        return values / values.std()

    colours = np.stack([field(falls_by + 0.2) for _ in range(3)], axis=2)
    pixels = 128 + 50 * field(falls_by)[..., None] + 18 * colours
    return pixels.clip(0, 255).astype(np.uint8)


def _write_jpeg(store: Store, number: int, file: Path) -> None:
    encoded = store.encoded(number)
    if encoded[:2].tobytes() == b"\xff\xd8":
        file.write_bytes(encoded.tobytes())
    else:
        Image.fromarray(store.read(number)).save(file, quality=95)


def _sample(listed: tuple[str, int]) -> dict[str, Any]:
    file, label = listed
    return {"image": Path(file).read_bytes(), "label": label}


def _write_chunks(pictures: Pictures) -> None:
    import litdata

    litdata.optimize(
        _sample,
        pictures.listed(),
        str(pictures.chunks),
        chunk_bytes=_CHUNK,
        num_workers=1,
        verbose=False,
    )
