"""Loaders to compare, each with the same pictures, crops and batches: ours and its peers.

A peer that is not installed is left out; it is no requirement of the package. Each is written as
its own documentation has it. Workers are what each calls so: threads (ours, FFCV,
SPDL, DALI) or processes (the others).
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe.schema import Recipe
from bench.loader_pictures import Kind, Pictures

Epochs = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Batches of an epoch: uint8 (n, 3, size, size), and labels (n,)."""


@dataclass(frozen=True)
class Work:
    """Random crops of a share ``scale`` and an aspect ``ratio``, scaled and mirrored; how many."""

    pictures: Pictures
    size: int
    batch: int
    workers: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


@dataclass(frozen=True)
class Loader:
    """A loader by name; how it decodes and scales, and draws its order; what it needs installed."""

    name: str
    quality: str
    order: str
    reads: Kind
    build: Callable[[Work], Epochs]
    modules: tuple[str, ...] = ()
    install: str = ""

    @property
    def raw(self) -> bool:
        """Whether it reads pixels instead of JPEGs."""
        return self.reads in ("raw store", "arrays")

    def missing(self) -> str:
        """What to install, empty where all is there."""
        if all(importlib.util.find_spec(module) is not None for module in self.modules):
            return ""
        return f"not installed: {self.install}"


def ours(work: Work, kind: str) -> Epochs:
    """The training loader, micro-batches of a quarter of the batch."""
    loader = train_loader(work, kind)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        with loader.epoch(number) as batches:
            for batch in batches:
                yield batch.images, batch.labels

    return epoch


def train_loader(work: Work, kind: str, device: torch.device | None = None) -> TrainLoader:
    """The package's own."""
    path = work.pictures.store
    labels = Store(path).labels
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    prepared = Prepared(path.parent, classes, "", path, path, labels, labels, 0.0, 1.0, 0)
    augment = {"scale": work.scale, "ratio": work.ratio, "flip": work.flip}
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "data": {"name": "imagefolder", "loader": kind, "num_workers": work.workers},
            "train": {"global_batch": work.batch, "micro_batch": work.batch // 4},
            "augment": augment,
        }
    )
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", work.size, work.size)
    device = device or torch.device("cpu")
    return TrainLoader(prepared, recipe, preprocess, rank=0, world_size=1, device=device)


def stock_ffcv(work: Work) -> Epochs:
    """FFCV as its users have it: its random crop and flip, whatever they draw."""
    # Through ours, because FFCV alone cannot be imported by Python 3.12.
    from adafilter_dist.data.loading.ffcv_backend import Loader as StockLoader

    # isort: split
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    shape = (work.size, work.size)
    crop = RandomResizedCropRGBImageDecoder(shape, scale=work.scale, ratio=work.ratio)
    flip = [RandomHorizontalFlip(work.flip)] if work.flip else []
    loader = StockLoader(
        str(work.pictures.store),
        batch_size=work.batch,
        num_workers=work.workers,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": [crop, *flip, ToTensor(), ToTorchImage()]},
    )

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images, labels.reshape(-1)

    return epoch


def image_folder(work: Work) -> Epochs:
    """torchvision's ImageFolder, whose pictures Pillow decodes."""
    transform = v2.Compose([_crop(work), v2.PILToTensor()])
    return _data_loader(ImageFolder(str(work.pictures.files), transform), work)


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Pictures decoded by torchvision."""

    def __init__(self, work: Work) -> None:
        self._listed, self._crop = work.pictures.listed(), _crop(work)

    def __len__(self) -> int:
        return len(self._listed)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self._listed[index]
        return self._crop(decode_image(file, ImageReadMode.RGB)), label


def torchvision_v2(work: Work, persistent: bool) -> Epochs:
    """torchvision's decoder and its transforms on tensors."""
    return _data_loader(_Decoded(work), work, persistent)


def webdataset(work: Work) -> Epochs:
    """Shards, shuffled, and 1,000 pictures of a worker again."""
    import webdataset as wds

    transform = v2.Compose([_crop(work), v2.PILToTensor()])
    shards = work.pictures.shards
    stream = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode("pil")
    samples = stream.to_tuple("jpg", "cls").map_tuple(transform, int)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        samples,
        work.batch,
        num_workers=work.workers,
        persistent_workers=True,
        drop_last=True,
    )
    return lambda number: loader


class _Bytes:
    """What LitData's chunks hold, decoded by torchvision, as LitData itself does."""

    def __init__(self, work: Work) -> None:
        self._crop = _crop(work)

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, int]:
        encoded = torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8)
        return self._crop(decode_image(encoded, ImageReadMode.RGB)), sample["label"]


def litdata(work: Work) -> Epochs:
    """Chunks on a local disk."""
    from litdata import StreamingDataLoader, StreamingDataset

    stream = StreamingDataset(
        str(work.pictures.chunks), shuffle=True, drop_last=True, transform=_Bytes(work)
    )
    loader = StreamingDataLoader(
        stream,
        batch_size=work.batch,
        num_workers=work.workers,
        persistent_workers=True,
        drop_last=True,
    )
    return lambda number: loader


def spdl(work: Work) -> Epochs:
    """SPDL's threads: FFmpeg decodes, crops and scales."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    listed = work.pictures.listed()

    def decode(index: int) -> tuple[Any, int]:
        file, label = listed[index]
        packets = spdl.io.demux_image(file)
        top, left, height, width = _box(work, packets.height, packets.width)
        steps = [f"crop={width}:{height}:{left}:{top}:exact=1"]
        steps += [f"scale={work.size}:{work.size}:flags=bilinear"]
        steps += ["hflip"] if random.random() < work.flip else []
        steps += ["format=pix_fmts=rgb24"]
        return spdl.io.decode_packets(packets, filter_desc=",".join(steps)), label

    def join(samples: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        pixels = spdl.io.to_torch(spdl.io.convert_frames([frames for frames, _ in samples]))
        return pixels.permute(0, 3, 1, 2), torch.tensor([label for _, label in samples])

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng(number).permutation(len(listed)).tolist()
        builder = PipelineBuilder().add_source(order).pipe(decode, concurrency=work.workers)
        builder = builder.aggregate(work.batch, drop_last=True).pipe(join).add_sink(3)
        pipeline = builder.build(num_threads=work.workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def dali_cpu(work: Work) -> Epochs:
    """DALI's threads, without a GPU; it decodes the crop alone."""
    from nvidia.dali import fn, pipeline_def, types

    files, labels = zip(*work.pictures.listed(), strict=True)

    @pipeline_def(batch_size=work.batch, num_threads=work.workers, device_id=None)
    def crops() -> tuple[Any, Any]:
        encoded, label = fn.readers.file(
            files=list(files), labels=list(labels), random_shuffle=True, name="files"
        )
        pictures = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.RGB,
            random_area=list(work.scale),
            random_aspect_ratio=list(work.ratio),
        )
        pictures = fn.resize(pictures, size=[work.size, work.size])
        if work.flip:
            pictures = fn.flip(pictures, horizontal=fn.random.coin_flip(probability=work.flip))
        return pictures, label

    pipeline = crops()
    pipeline.build()

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(files) // work.batch):
            images, label = (np.array(part.as_array()) for part in pipeline.run())
            yield torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(label).reshape(-1)

    return epoch


def dali_arrays(work: Work) -> Epochs:
    """DALI's threads on pixels in files of NumPy."""
    from nvidia.dali import fn, pipeline_def

    files = work.pictures.arrays

    @pipeline_def(batch_size=work.batch, num_threads=work.workers, device_id=None)
    def crops() -> tuple[Any, Any]:
        pixels = fn.readers.numpy(files=files, random_shuffle=True, name="files")
        name = fn.get_property(pixels, key="source_info")
        pictures = fn.random_resized_crop(
            pixels,
            size=[work.size, work.size],
            random_area=list(work.scale),
            random_aspect_ratio=list(work.ratio),
        )
        if work.flip:
            pictures = fn.flip(pictures, horizontal=fn.random.coin_flip(probability=work.flip))
        return pictures, name

    pipeline = crops()
    pipeline.build()

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(files) // work.batch):
            images, names = (np.array(part.as_array()) for part in pipeline.run())
            labels = [int(bytes(name).decode().rpartition("-")[2][:5]) for name in names]
            yield torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)

    return epoch


def on_pixels(build: Callable[[Work], Epochs]) -> Callable[[Work], Epochs]:
    """The same on the store that holds pixels."""

    def raw(work: Work) -> Epochs:
        pictures = replace(work.pictures, store=work.pictures.raw_store)
        return build(replace(work, pictures=pictures))

    return raw


_FFCV: dict[str, Any] = {"modules": ("ffcv",), "install": "pip install 'adafilter-dist[ffcv]'"}
_DALI: dict[str, Any] = {
    "modules": ("nvidia.dali",) if importlib.util.find_spec("nvidia") else ("nvidia",),
    "install": "pip install nvidia-dali-cuda120",
}
_OURS = "any; a function of the seed"
_LIST_OF_1024 = "1,024 at a time, from a list"
LOADERS = [
    Loader(
        "ours, numba",
        "libjpeg-turbo, the crop alone; area",
        _OURS,
        "store",
        lambda work: ours(work, "numba"),
    ),
    Loader(
        "ours, FFCV",
        "libjpeg-turbo; area",
        _OURS,
        "store",
        lambda work: ours(work, "ffcv"),
        **_FFCV,
    ),
    Loader(
        "ours, torchvision", "Pillow; area", _OURS, "store", lambda work: ours(work, "torchvision")
    ),
    Loader("stock FFCV", "libjpeg-turbo, fast DCT; area", "any", "store", stock_ffcv, **_FFCV),
    Loader(
        "torchvision v2, workers stay",
        "libjpeg-turbo; bilinear, antialiased",
        "any",
        "files",
        lambda work: torchvision_v2(work, True),
    ),
    Loader(
        "torchvision v2, workers anew",
        "libjpeg-turbo; bilinear, antialiased",
        "any",
        "files",
        lambda work: torchvision_v2(work, False),
    ),
    Loader("ImageFolder, Pillow", "Pillow; bilinear, antialiased", "any", "files", image_folder),
    Loader(
        "WebDataset, Pillow",
        "Pillow; bilinear, antialiased",
        "shards; 1,000 at a time of each worker's",
        "shards",
        webdataset,
        ("webdataset",),
        "pip install webdataset",
    ),
    Loader(
        "LitData, local",
        "libjpeg-turbo; bilinear, antialiased",
        "chunks; any within a chunk",
        "chunks",
        litdata,
        ("litdata",),
        "pip install litdata",
    ),
    Loader(
        "SPDL, threads",
        "FFmpeg, scaled in YUV; bilinear",
        "any, as the list that it is given",
        "files",
        spdl,
        ("spdl.io", "spdl.pipeline") if importlib.util.find_spec("spdl") else ("spdl",),
        "pip install spdl, and FFmpeg's libraries (apt-get install ffmpeg)",
    ),
    Loader(
        "DALI, CPU", "nvImageCodec; linear, antialiased", _LIST_OF_1024, "files", dali_cpu, **_DALI
    ),
    Loader(
        "ours, numba, raw",
        "area",
        _OURS,
        "raw store",
        on_pixels(lambda work: ours(work, "numba")),
    ),
    Loader(
        "ours, FFCV, raw",
        "area",
        _OURS,
        "raw store",
        on_pixels(lambda work: ours(work, "ffcv")),
        **_FFCV,
    ),
    Loader(
        "ours, torchvision, raw",
        "area",
        _OURS,
        "raw store",
        on_pixels(lambda work: ours(work, "torchvision")),
    ),
    Loader("stock FFCV, raw", "area", "any", "raw store", on_pixels(stock_ffcv), **_FFCV),
    Loader(
        "DALI, CPU, NumPy files",
        "linear, antialiased",
        _LIST_OF_1024,
        "arrays",
        dali_arrays,
        **_DALI,
    ),
]
"""The others have no raw records."""


def _crop(work: Work) -> Callable[[Any], Any]:
    crop = v2.RandomResizedCrop(work.size, work.scale, work.ratio)
    return v2.Compose([crop, v2.RandomHorizontalFlip(work.flip)])


def _data_loader(dataset: Dataset[Any], work: Work, persistent: bool = True) -> Epochs:
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset,
        batch_size=work.batch,
        shuffle=True,
        drop_last=True,
        num_workers=work.workers,
        persistent_workers=persistent,
    )
    return lambda number: loader


def _box(work: Work, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, as torchvision draws it."""
    low, high = (math.log(ratio) for ratio in work.ratio)
    for _ in range(10):
        area = height * width * random.uniform(*work.scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def files_of(pictures: Pictures) -> dict[int, Path]:
    """The one file of each label, where each has one."""
    return {label: Path(file) for file, label in pictures.listed()}
