"""The pictures that loaders are compared on: one set of JPEGs, stored as each loader wants it."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.data.stored.store import Format, Store, write_store

SHARDS = 16  # or one for every 10,000 pictures
_IN_A_SHARD = 10_000


Kind = Literal["store", "files", "shards", "chunks", "raw store", "arrays"]


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
        """(file, label) of each, by label and number."""
        return [
            (entry.path, int(folder.name))
            for folder in sorted(self.files.iterdir())
            for entry in sorted(os.scandir(folder), key=lambda each: each.name)
        ]

    @property
    def shards(self) -> list[str]:
        """WebDataset's."""
        return sorted(map(str, (self.folder / "shards").glob("*.tar")))

    @property
    def chunks(self) -> Path:
        """LitData's."""
        return self.folder / "chunks"

    @property
    def raw_store(self) -> Path:
        """The pixels of the JPEGs, in a store."""
        return self.folder / "raw.beton"

    @property
    def arrays(self) -> list[str]:
        """The same pixels, ``NUMBER-LABEL.npy``, for DALI."""
        return sorted(map(str, (self.folder / "arrays").glob("*.npy")))

    def of(self, kind: Kind) -> list[Path]:
        """The files of one kind."""
        match kind:
            case "store":
                return [self.store]
            case "raw store":
                return [self.raw_store]
            case "files":
                return [Path(file) for file, _ in self.listed()]
            case "shards":
                return [Path(file) for file in self.shards]
            case "chunks":
                return list(self.chunks.iterdir())
            case "arrays":
                return [Path(file) for file in self.arrays]

    def every_file(self) -> list[Path]:
        """All that a loader may read."""
        return [self.store, *(path for path in self.folder.rglob("*") if path.is_file())]


def kept(folder: Path, count: int, side: int, *, distinct: int = 0, raw: bool = True) -> Pictures:
    """The pictures in ``folder``, made there where they are not yet.

    ``distinct``: after so many they repeat, and their files are hard links. ``raw``: pixels too.
    """
    pictures = Pictures(folder / "pictures", folder / "store.beton", count)
    whole = folder / f"{count} of {side} px"  # written last
    if not whole.exists():
        folder.mkdir(parents=True, exist_ok=True)
        store = make_up(pictures.store, count, side, "jpg", distinct)
        spread(store, pictures.folder, distinct)
        if raw:
            _write_raw(pictures)
        whole.touch()
    return pictures


def copied(folder: Path, store: Path) -> Pictures:
    """The pictures of a store of JPEGs that is elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(shutil.copyfile(store, folder / "store.beton"))
    pictures = spread(here, folder / "pictures")
    _write_raw(pictures)
    return pictures


def probes_in(folder: Path, count: int, side: int) -> Pictures:
    """Square pictures, each with a label of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "pictures").exists():
        shutil.rmtree(folder / "pictures")
    pictures = spread(make_probes(folder / "store", count, side), folder / "pictures")
    _write_raw(pictures)
    return pictures


def make_up(path: Path, count: int, side: int, format: Format, distinct: int = 0) -> Path:
    """A store of pictures with waves, patches and noise, about as hard to decode as photographs."""
    drawn = [picture(number, side) for number in range(distinct)]

    def record(number: int) -> tuple[NDArray[np.uint8], int]:
        pixels = drawn[number % distinct] if distinct else picture(number, side)
        return pixels, number % 10

    records = [partial(record, number) for number in range(count)]
    return write_store(path, records, format=format, num_workers=2).path


def make_probes(path: Path, count: int, side: int) -> Path:
    """A store of square JPEGs, each with a label of its own."""

    def record(number: int) -> tuple[NDArray[np.uint8], int]:
        return np.ascontiguousarray(picture(number, side)[:side, :side]), number

    return write_store(path, [partial(record, number) for number in range(count)]).path


def spread(store: Path, folder: Path, distinct: int = 0) -> Pictures:
    """The pictures of a store as files and shards too, and as chunks where LitData is installed."""
    stored = Store(store)
    labels = stored.labels.tolist()
    for label in set(labels):
        (folder / "files" / f"{label:05}").mkdir(parents=True)
    files = [
        str(folder / "files" / f"{label:05}" / f"{number:07}.jpg")
        for number, label in enumerate(labels)
    ]
    for number, file in enumerate(files):
        if distinct and number >= distinct:
            os.link(files[number % distinct], file)
        else:
            _write_jpeg(stored, number, Path(file))
    (folder / "shards").mkdir()
    shards = min(max(SHARDS, len(labels) // _IN_A_SHARD), len(labels))
    for first in range(shards):
        with tarfile.open(folder / "shards" / f"{first:05}.tar", "w") as shard:
            for number in range(first, len(labels), shards):
                content = Path(files[number]).read_bytes()
                _add(shard, f"{number:07}.jpg", content)
                _add(shard, f"{number:07}.cls", str(labels[number]).encode())
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


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def _write_raw(pictures: Pictures) -> None:
    stored = Store(pictures.store)
    labels = stored.labels.tolist()

    def record(number: int) -> tuple[NDArray[np.uint8], int]:
        return stored.read(number), labels[number]

    records = [partial(record, number) for number in range(len(labels))]
    write_store(pictures.raw_store, records, format="raw", num_workers=2)
    (pictures.folder / "arrays").mkdir()
    for number, label in enumerate(labels):
        np.save(pictures.folder / "arrays" / f"{number:07}-{label:05}.npy", stored.read(number))


def _sample(listed: tuple[str, int]) -> dict[str, Any]:
    file, label = listed
    return {"image": Path(file).read_bytes(), "label": label}


def _write_chunks(pictures: Pictures) -> None:
    import litdata

    litdata.optimize(
        _sample,
        pictures.listed(),
        str(pictures.chunks),
        chunk_bytes="8MB" if pictures.count < 100_000 else "64MB",
        num_workers=1,
        verbose=False,
    )
