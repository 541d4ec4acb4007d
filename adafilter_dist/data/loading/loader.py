"""The two loaders: random crops of the training split in exact order, and plain evaluation.

What decodes is chosen here; order, boxes and flips come from here, so that the pictures are the
same whatever decodes, and whatever the number of workers and ranks.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.backend import ReadPlan
from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.choose import choose_backend, choose_reader
from adafilter_dist.data.loading.crop import crop_boxes, flips
from adafilter_dist.data.loading.order import (
    batch_share,
    rank_order,
    steps_per_epoch,
)
from adafilter_dist.data.loading.policy import policy_of
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.data.stored.prepared import Domains, Prepared, SplitName
from adafilter_dist.data.stored.store import Store
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.slurm.cpus import cpus_of_rank

__all__ = ["EvalLoader", "MicroBatch", "TrainLoader"]


class TrainLoader:
    """The training split, augmented, in the order of (seed, epoch): this rank's part of it.

    ``kind`` is what decodes, ``notice`` a line to print if it is not the fast way. ``before`` is
    what decoded for the run until now: ``data.loader=auto`` keeps to its pixels. Raises UserError
    if the split is smaller than a global batch, or what ``data.loader`` asks for cannot be used.
    """

    def __init__(
        self,
        prepared: Prepared,
        recipe: Recipe,
        preprocess: Preprocess,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        before: str | None = None,
    ) -> None:
        path, self._records, self._labels = prepared.split("train")
        self._domains = prepared.domains_of("train")
        self._recipe = recipe
        self._rank, self._world_size = rank, world_size
        self._pin = device.type == "cuda"
        self._workers = recipe.data.num_workers or cpus_of_rank()
        self._policy = policy_of(recipe.augment, recipe.seed)
        self.steps_per_epoch = steps_per_epoch(len(self._records), recipe.train.global_batch)
        self.store_name = path.name
        self._store = Store(path)
        self._backend, self.notice = choose_backend(
            recipe, self._store, preprocess.crop, self._workers, device, before
        )
        self.kind = self._backend.kind

    @contextlib.contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        """The micro-batches of this rank, step by step, from ``first_step`` of the epoch on.

        What came before ``first_step`` is not read. However the context is left, threads have ended
        afterwards.
        """
        with self.read(epoch, self.order(epoch, first_step)) as batches:
            yield batches

    def order(self, epoch: int, first_step: int = 0) -> NDArray[np.int64]:
        """The samples of `epoch`: (micro-batches, m)."""
        train = self._recipe.train
        return rank_order(
            self._recipe.seed,
            epoch,
            len(self._records),
            train.global_batch,
            train.micro_batch,
            self._rank,
            self._world_size,
            first_step,
        ).reshape(-1, train.micro_batch)

    @contextlib.contextmanager
    def read(
        self, epoch: int, samples: NDArray[np.int64], wanted: NDArray[np.bool_] | None = None
    ) -> Iterator[Iterator[MicroBatch]]:
        """Micro-batches of ``samples`` (n, m) as the epoch has them.

        Those that are not ``wanted`` (n,) are not decoded: they come without images.
        """
        with contextlib.closing(self._micro_batches(epoch, samples, wanted)) as batches:
            yield batches

    def crops(self, epoch: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is seen of the samples ``index`` (n,): record, top, left, height, width, mirrored.

        (n, 6). With ``augment.policy`` more is drawn by seed and epoch.
        """
        return np.column_stack([self._records[index], self._boxes(epoch, index)])

    def _micro_batches(
        self,
        epoch: int,
        samples: NDArray[np.int64],
        wanted: NDArray[np.bool_] | None = None,
    ) -> Generator[MicroBatch, None, None]:
        if wanted is None:
            wanted = np.ones(len(samples), np.bool_)
        read = samples[wanted]
        plan = ReadPlan(read, self._records[read], lambda index: self._boxes(epoch, index))
        with contextlib.closing(self._images(epoch, plan)) as images:
            for index, decode in zip(samples, wanted, strict=True):
                pixels = next(images) if decode else _nothing()
                labels = _host(self._labels[index], self._pin)
                domain = _domain(self._domains, index, self._pin)
                yield MicroBatch(pixels, labels, torch.from_numpy(index), domain)

    def _images(self, epoch: int, plan: ReadPlan) -> Generator[Tensor, None, None]:
        with contextlib.closing(self._backend.read(plan)) as images:
            policy = self._policy
            if policy is None:
                yield from images
                return
            with WorkerPool(self._workers) as pool:
                yield from pool.map(
                    lambda item: policy(item[0], item[1], epoch),
                    zip(images, plan.samples, strict=True),
                    ahead=self._workers,
                )

    def _boxes(self, epoch: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, 5) for the samples ``index``: top, left, height, width, mirrored."""
        seed, augment = self._recipe.seed, self._recipe.augment
        records = self._records[index]
        heights, widths = self._store.heights[records], self._store.widths[records]
        boxes = crop_boxes(seed, epoch, index, heights, widths, augment.scale, augment.ratio)
        return np.column_stack([boxes, flips(seed, epoch, index, augment.flip)])


class EvalLoader:
    """A split for evaluation: resized and cropped as the weights ask for, nothing random.

    Batches are the same on any number of ranks, and each goes to exactly one of them. ``domains``
    are those of the whole split, None where the data have none.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: SplitName,
        recipe: Recipe,
        preprocess: Preprocess,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
    ) -> None:
        path, self._records, self._labels = prepared.split(split)
        self.domains = prepared.domains_of(split)
        self.store_name = path.name
        self._store = Store(path)
        self._workers = recipe.data.num_workers or cpus_of_rank()
        # Pinning opens a context on the GPU.
        self._pin = recipe.engine.device != "cpu" and torch.cuda.is_available()
        self._known: Callable[[NDArray[np.int64]], bool] | None = None
        self._batch_size = batch_size
        self._crop = preprocess.crop
        self._read = choose_reader(recipe, self._store, len(self._records), preprocess)
        self.total = len(self._records)
        self._batches = batch_share(self.total, batch_size, rank, world_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Generator[MicroBatch, None, None]:
        samples = range(
            self._batches.start * self._batch_size,
            min(self._batches.stop * self._batch_size, self.total),
        )
        batches = [
            torch.arange(first, min(first + self._batch_size, samples.stop))
            for first in samples[:: self._batch_size]
        ]
        decoded = [self._known is None or not self._known(self.records(b)) for b in batches]
        wanted = (
            sample
            for batch, decode in zip(batches, decoded, strict=True)
            if decode
            for sample in batch.tolist()
        )
        with WorkerPool(self._workers) as pool:
            pictures = pool.map(self._picture, wanted, ahead=self._batch_size + self._workers)
            for batch, decode in zip(batches, decoded, strict=True):
                yield self._filled(batch, pictures if decode else None)

    def sparing(self, known: Callable[[NDArray[np.int64]], bool]) -> EvalLoader:
        """The same batches, without images where ``known(records)`` says so before any is read."""
        other = copy.copy(self)
        other._known = known
        return other

    def records(self, index: Tensor) -> NDArray[np.int64]:
        """Where the samples ``index`` (n,) lie in the file ``store_name``."""
        return self._records[index.numpy()]

    def read(self, index: Tensor) -> MicroBatch:
        """A batch of the samples ``index`` (n,), decoded one after the other."""
        return self._filled(index, (self._picture(sample) for sample in index.tolist()))

    def _filled(self, index: Tensor, pictures: Iterator[NDArray[np.uint8]] | None) -> MicroBatch:
        crop, pin = self._crop, self._pin
        images = _nothing()
        if pictures is not None:
            shape = (len(index), crop, crop, 3)
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
            for pixels in images.numpy():
                pixels[:] = next(pictures)
            images = images.permute(0, 3, 1, 2)
        labels = _host(self._labels[index.numpy()], pin)
        domain = _domain(self.domains, index.numpy(), pin)
        return MicroBatch(images, labels, index, domain)

    def _picture(self, sample: int) -> NDArray[np.uint8]:
        return self._read(int(self._records[sample]))


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _domain(domains: Domains | None, index: NDArray[np.int64], pin: bool) -> Tensor | None:
    return None if domains is None else _host(domains.numbers[index], pin)


def _host(numbers: NDArray[np.int64], pin: bool) -> Tensor:
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory() if pin else tensor
