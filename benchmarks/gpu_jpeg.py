"""JPEGs decoded on the GPU, data.loader=nvjpeg, beside the loader that a run takes by itself.

    python benchmarks/gpu_jpeg.py                 # on a GPU
    python benchmarks/gpu_jpeg.py --device cpu    # the same code; TorchCodec's libjpeg decodes

Pictures a second and CPU time of whole pictures decoded, of crops, and of the loader's crops. Then,
each with exit code 1 where it is not so: the same bits twice, in micro-batches of another size too;
scaled on the device to the bits of the CPU; a damaged picture is named, or else it is said that
nvJPEG does not notice it. Last, how far pixels are from the loader's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench.loader_pictures import Pictures, make_up
from bench.loaders import Work, train_loader
from bench.process_tree import cpu_seconds
from torch import Tensor
from torchcodec.decoders import decode_jpeg

from adafilter_dist.data.loading.device_resize import resize_boxes
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.loading.nvjpeg_backend import NvjpegBackend
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError


def on_device(work: Work, device: torch.device) -> TrainLoader:
    """A loader that decodes on the device, which may be the CPU here."""
    if device.type == "cuda":
        return train_loader(work, "nvjpeg", device)
    loader = train_loader(work, "numba", device)
    store = Store(work.pictures.store)
    loader._backend = NvjpegBackend(store, work.size, work.workers, device)
    return loader


def decoded(
    loader: TrainLoader, work: Work, number: int, device: torch.device
) -> Iterator[list[Tensor]]:
    """Whole pictures of an epoch in its order, uint8 (3, H, W) on the device."""
    store = Store(work.pictures.store)
    for index in loader.order(number):
        records = loader.crops(number, index)[:, 0].tolist()
        encoded = [torch.from_numpy(store.encoded(record).copy()) for record in records]
        yield list(decode_jpeg(encoded, device=device))


def crops(loader: TrainLoader, number: int) -> Iterator[Tensor]:
    """Micro-batches of an epoch."""
    with loader.epoch(number) as batches:
        yield from (batch.images for batch in batches)


def whole(loader: TrainLoader, number: int = 0) -> Tensor:
    """All pictures of an epoch, on the CPU."""
    return torch.cat([images.cpu() for images in crops(loader, number)])


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


def same_scaling(loader: TrainLoader, work: Work, device: torch.device) -> bool:
    """Whether the device scales decoded pictures to the bits of the CPU."""
    index = loader.order(0)[0]
    boxes = loader.crops(0, index)[:, 1:]
    pictures = next(decoded(loader, work, 0, device))
    scaled = []
    for place in (device, torch.device("cpu")):
        shape = (len(index), work.size, work.size, 3)
        target = torch.empty(shape, dtype=torch.uint8, device=place).permute(0, 3, 1, 2)
        resize_boxes([picture.to(place) for picture in pictures], boxes, target)
        scaled.append(target.cpu())
    return torch.equal(*scaled)


def of_damage(work: Work, folder: Path, device: torch.device, *, end: bool) -> str:
    """What is said of a picture whose second half is lost, with or without its end."""
    store = Store(work.pictures.store)
    offset, size = store.index[1, :2].tolist()
    content = bytearray(store.path.read_bytes())
    last = offset + size - (0 if end else 2)
    content[offset + size // 2 : last] = bytes(last - offset - size // 2)
    path = folder / f"damaged-{end}.beton"
    path.write_bytes(content)
    pictures = replace(work.pictures, store=path)
    try:
        whole(on_device(replace(work, pictures=pictures), device))
    except UserError as error:
        return f"named: {error}" if "record 1 " in str(error) else f"NOT NAMED: {error}"
    return "not noticed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--pictures", type=int, default=2000, help="how many to make up (2000)")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch, of 4 quarters")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--workers", type=int, default=2, help="of both loaders (2)")
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        store = make_up(Path(scratch) / "store", options.pictures, 256, "jpg")
        pictures = Pictures(store.parent, store, options.pictures)
        work = Work(pictures, options.size, options.batch, options.workers)
        there, ours = on_device(work, device), train_loader(work, "auto")

        # Speed.
        epochs: dict[str, Callable[[int], Iterator[object]]] = {
            "decoded": lambda number: decoded(there, work, number, device),
            "cropped, too": lambda number: crops(there, number),
            ours.kind: lambda number: crops(ours, number),
        }
        for name, epoch in epochs.items():
            print(f"{name:14}{timed(epoch, device, options.pictures)}", flush=True)

        # What must hold.
        first = whole(there)
        smaller = on_device(replace(work, batch=options.batch // 2), device)
        count = min(len(first), len(whole(smaller)))
        holds = {
            "the same bits twice": torch.equal(first, whole(there)),
            "in smaller batches": torch.equal(first[:count], whole(smaller)[:count]),
            "scaled to the CPU's bits": same_scaling(there, work, device),
        }
        lost = of_damage(work, Path(scratch), device, end=True)
        holds["a lost end is named"] = lost.startswith("named")
        for what, so in holds.items():
            print(f"{what}: {so}")
        print(f"damage inside a picture: {of_damage(work, Path(scratch), device, end=False)}")

    apart = np.abs(first.numpy().astype(np.int16) - whole(ours).numpy())
    print(f"grey levels from the loader's: mean {apart.mean():.2f}, most {apart.max()}")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
