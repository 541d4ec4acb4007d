"""JPEGs decoded on the GPU: nvJPEG through torchvision, with the loader's crops, beside the loader.

    python benchmarks/gpu_jpeg.py                 # on a GPU
    python benchmarks/gpu_jpeg.py --device cpu    # the same code, torchvision's decoder for CPUs

What a decoder on the device would be worth: pictures a second and CPU time of decoding alone, and
of decoding, cropping and scaling; whether the bits are the same twice; how far pixels are from the
loader's, which scales otherwise. The package has no such decoder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench.loader_pictures import Pictures, make_up
from bench.loaders import Work, train_loader
from bench.process_tree import cpu_seconds
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.stored.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--pictures", type=int, default=2000, help="how many to make up (2000)")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch (128)")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--workers", type=int, default=2, help="of the loader beside it (2)")
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        store = make_up(Path(scratch) / "store", options.pictures, 256, "jpg")
        work = Work(
            Pictures(store.parent, store, options.pictures),
            options.size,
            options.batch,
            options.workers,
        )
        loader = train_loader(work, "auto")

        def whole(number: int) -> Iterator[list[Tensor]]:
            return decoded(loader, Store(store), options.batch, number, device)

        def cropped(number: int) -> Iterator[Tensor]:
            return crops(loader, Store(store), work, number, device)

        def ours(number: int) -> Iterator[Tensor]:
            with loader.epoch(number) as batches:
                yield from (batch.images for batch in batches)

        for name, epoch in (("decoded", whole), ("cropped, too", cropped), (loader.kind, ours)):
            print(f"{name:14}{timed(epoch, device, options.pictures)}", flush=True)
        first, again = (torch.cat([b.cpu() for b in cropped(0)]) for _ in range(2))
        print(f"the same bits twice: {torch.equal(first, again)}")
        theirs = torch.cat(list(ours(0)))
        apart = (first.int() - theirs.int()).abs()
        print(f"grey levels from the loader's: mean {apart.float().mean():.2f}, most {apart.max()}")


def decoded(
    loader: TrainLoader, store: Store, batch: int, number: int, device: torch.device
) -> Iterator[list[Tensor]]:
    """Whole pictures of an epoch in its order, uint8 (3, H, W) on the device."""
    records = loader.crops(number, loader.order(number).reshape(-1))[:, 0]
    for first in range(0, len(records), batch):
        encoded = [
            torch.from_numpy(store.encoded(record).copy())
            for record in records[first : first + batch].tolist()
        ]
        yield decode_jpeg(encoded, ImageReadMode.RGB, device=device)


def crops(
    loader: TrainLoader, store: Store, work: Work, number: int, device: torch.device
) -> Iterator[Tensor]:
    """The loader's crops of the same epoch, scaled on the device: uint8 (n, 3, size, size)."""
    boxes = iter(loader.crops(number, loader.order(number).reshape(-1))[:, 1:].tolist())
    shape = [work.size, work.size]
    for pictures in decoded(loader, store, work.batch, number, device):
        scaled = []
        for picture, (top, left, height, width, mirrored) in zip(pictures, boxes, strict=False):
            part = functional.resized_crop(picture, top, left, height, width, shape, antialias=True)
            scaled.append(part.flip(-1) if mirrored else part)
        yield torch.stack(scaled)


def timed(epoch: Callable[[int], Iterator[object]], device: torch.device, pictures: int) -> str:
    """Pictures a second and CPU time of an epoch, after one that is not counted."""
    for number in range(2):
        cpu, began = cpu_seconds(), time.perf_counter()
        for _ in epoch(number):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return f"{pictures / seconds:8,.0f} pictures/s, {1e3 * cpu / pictures:6.2f} CPU ms a picture"


if __name__ == "__main__":
    main()
