"""The cache of a run: batches of activations, read from disk or computed and kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adafilter_dist.activations import identity
from adafilter_dist.activations.find_cut import NotFrozen, computes_the_same, find_frozen_part
from adafilter_dist.activations.frozen_part import FrozenPart
from adafilter_dist.activations.store import ActivationStore, Counts
from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.loading.mix import mix_each
from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import TrainableModel
from adafilter_dist.models.ops.dtypes import autocast, weights_dtype
from adafilter_dist.recipe import Recipe
from adafilter_dist.system.counted import counted
from adafilter_dist.system.disk import gib, size_of

_EXAMPLES = 4  # pictures by which it is seen where the frozen part ends


@runtime_checkable
class SparingLoader(Protocol):
    """A loader of evaluation that can leave out the pictures of batches."""

    @property
    def store_name(self) -> str: ...

    def sparing(self, known: Callable[[NDArray[np.int64]], bool]) -> SparingLoader: ...

    def records(self, index: Tensor) -> NDArray[np.int64]: ...

    def read(self, index: Tensor) -> MicroBatch: ...

    def __iter__(self) -> Iterator[MicroBatch]: ...


@dataclass(frozen=True)
class Work:
    """The forwards of an epoch from a step on: which micro-batches of a step each of them takes."""

    epoch: int
    first_step: int
    steps_per_epoch: int
    forwards: Sequence[range]


@dataclass(frozen=True)
class _Forward:
    """One forward of a step: its samples (micro-batches, m), and the key of what it gives."""

    samples: NDArray[np.int64]
    step: int
    micro_batches: range
    key: str


class ActivationCache:
    """Activations of the frozen part of one run's network, below the folder ``root``.

    Its folders are named by what the bits depend on (`identity.common`), so that runs share what
    they can, and nothing else.
    """

    def __init__(
        self,
        root: Path,
        model: nn.Module,
        part: FrozenPart,
        penalty: Callable[[Tensor], Tensor],
        recipe: Recipe,
        loader: TrainLoader,
        transfer: BatchTransfer,
        fingerprint: str,
        say: Callable[[str], None],
    ) -> None:
        self.counts = Counts()
        self._model = model
        self._part = part
        self._penalty = penalty
        self._root = root
        self._recipe = recipe
        self._loader = loader
        self._transfer = transfer
        self._fingerprint = fingerprint
        self._say = say
        self._stores: dict[tuple[str, str], ActivationStore] = {}
        self._checked: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[str, int], bool]]
        self._checked = weakref.WeakKeyDictionary()

    def summary(self, world_size: int) -> str:
        """What was read and computed so far, and the size of all that is kept."""
        counts = self.counts
        ranks = " by this rank" if world_size > 1 else ""
        damaged = f", {counted(counts.damaged, 'file')} damaged" if counts.damaged else ""
        return (
            f"train.cache: {counts.read} batches read and {counts.computed} computed{ranks}"
            f"{damaged}; {self._root} now holds {gib(size_of(self._root))}"
        )

    @contextmanager
    def epoch(self, work: Work, num_classes: int) -> Iterator[Iterator[DeviceBatch]]:
        """The batches of an epoch's forwards, mixed, as activations.

        Pictures are decoded only for what the cache does not hold.
        """
        self._look_again()
        loader, store = self._loader, self._store(self._part, self._recipe.train.precision)
        order = loader.order(work.epoch, work.first_step)
        forwards = list(self._forwards(work, order))
        known = np.array([store.has(forward.key) for forward in forwards], np.bool_)
        wanted = ~np.repeat(known, [len(forward.samples) for forward in forwards])
        with loader.read(work.epoch, order, wanted) as batches:
            yield (
                self._batch(
                    store,
                    work.epoch,
                    forward,
                    list(islice(batches, len(forward.samples))),
                    num_classes,
                )
                for forward in forwards
            )

    def _forwards(self, work: Work, order: NDArray[np.int64]) -> Iterator[_Forward]:
        recipe, loader, row = self._recipe, self._loader, 0
        step = work.epoch * work.steps_per_epoch + work.first_step
        while row < len(order):
            for micro_batches in work.forwards:
                samples = order[row : row + len(micro_batches)]
                index = samples.reshape(-1)
                key = identity.training_key(
                    loader.store_name,
                    loader.crops(work.epoch, index),
                    index,
                    recipe.augment,
                    seed=recipe.seed,
                    epoch=work.epoch,
                    step=step,
                    micro_batches=micro_batches,
                )
                yield _Forward(samples, step, micro_batches, key)
                row += len(micro_batches)
            step += 1

    def _batch(
        self,
        store: ActivationStore,
        epoch: int,
        forward: _Forward,
        parts: list[MicroBatch],
        num_classes: int,
    ) -> DeviceBatch:
        recipe = self._recipe
        mixed = partial(
            mix_each,
            seed=recipe.seed,
            epoch=epoch,
            step=forward.step,
            micro_batches=forward.micro_batches,
            num_classes=num_classes,
        )
        decoded = parts[0].images.numel() > 0
        activations = None if decoded else store.read(forward.key)
        if activations is None:
            if not decoded:  # the file is damaged, or was deleted meanwhile
                with self._loader.read(epoch, forward.samples) as batches:
                    parts = list(batches)
            batch = self._transfer.bring(parts)
            images, _ = mixed(batch.images, batch.labels, batch.index, recipe.augment)
            activations = self._computed(self._part, images, recipe.train.precision)
            store.write(forward.key, activations)

        # Labels are mixed by draws and sizes alone: pictures of one channel stand in.
        labels = torch.cat([part.labels for part in parts])
        index = torch.cat([part.index for part in parts])
        side = self._transfer.preprocess.crop
        stand_in = torch.zeros(len(labels), 1, side, side, dtype=self._transfer.dtype)
        unerased = recipe.augment.model_copy(update={"erasing": 0.0})
        _, targets = mixed(stand_in, labels, index, unerased)
        domains = [part.domain for part in parts if part.domain is not None]
        return DeviceBatch(
            activations,
            labels,
            index,
            len(parts),
            torch.cat(domains) if domains else None,
            targets,
            self._part.skipped,
        )

    def evaluation(
        self, model: nn.Module, loader: object, precision: str
    ) -> Iterator[tuple[MicroBatch, Tensor, Callable[[], AbstractContextManager[None]]]] | None:
        """The loader's batches and their activations, which `model` takes inside the last.

        None where the loader cannot leave out pictures, or the model's first layers are not those
        of the run.
        """
        part = self._part_of(model)
        if part is None or not isinstance(loader, SparingLoader):
            return None
        return self._evaluation(part, loader, precision)

    def _evaluation(
        self, part: FrozenPart, loader: SparingLoader, precision: str
    ) -> Iterator[tuple[MicroBatch, Tensor, Callable[[], AbstractContextManager[None]]]]:
        store = self._store(part, precision)
        key_of = partial(identity.evaluation_key, loader.store_name)
        transfer = replace(self._transfer, dtype=weights_dtype(precision))
        for batch in loader.sparing(lambda records: store.has(key_of(records))):
            key = key_of(loader.records(batch.index))
            activations = None if batch.images.numel() else store.read(key)
            if activations is None:
                whole = batch if batch.images.numel() else loader.read(batch.index)
                images = transfer.bring([whole]).images
                activations = self._computed(part, images, precision)
                store.write(key, activations)
            yield batch, activations, part.skipped

    def _computed(self, part: FrozenPart, images: Tensor, precision: str) -> Tensor:
        with autocast(images.device, precision):
            return part.run(images)

    def _store(self, part: FrozenPart, precision: str) -> ActivationStore:
        name = (part.sha256, precision)
        if name not in self._stores:
            about = identity.common(
                self._recipe,
                self._fingerprint,
                self._transfer.preprocess,
                self._loader.kind,
                sha256=part.sha256,
                cut=part.cut.at,
                precision=precision,
            )
            folder = self._root / identity.folder_name(about)
            self._stores[name] = ActivationStore(folder, about, self.counts, self._say)
        return self._stores[name]

    def _look_again(self) -> None:
        """Take the weights as they are now: those of a checkpoint may differ from those on disk.

        UserError where the network does not compute the same from there on any more.
        """
        part = FrozenPart.of(self._model, self._part.cut)
        if part is not None and part.identity == self._part.identity:
            return
        if part is None or not self._computes_the_same(self._model, part, (True, False)):
            raise UserError(
                f"train.cache: {self._part.cut.at} and what is behind it do not fit together any "
                "more; go on with train.cache=null"
            )
        self._part = part

    def _part_of(self, model: nn.Module) -> FrozenPart | None:
        """The frozen part of a model that is evaluated, the best one perhaps, if it is the run's.

        The weights are looked at each time: the same model may have got those of a checkpoint.
        """
        part = FrozenPart.of(model, self._part.cut)
        if part is None or not part.has_weights_of(self._part):
            return None
        checked = self._checked.get(model)
        if checked is None or checked[0] != part.identity:
            checked = part.identity, self._computes_the_same(model, part, (False,))
            self._checked[model] = checked
        return part if checked[1] else None

    def _computes_the_same(self, model: nn.Module, part: FrozenPart, modes: Sequence[bool]) -> bool:
        context = partial(autocast, self._transfer.device, self._recipe.train.precision)
        example = _example(self._transfer, self._recipe)
        return computes_the_same(model, part, example, context, self._penalty, modes)


def open_cache(
    recipe: Recipe,
    model: nn.Module,
    trainable: TrainableModel,
    loader: TrainLoader,
    transfer: BatchTransfer,
    fingerprint: str,
    say: Callable[[str], None],
) -> tuple[ActivationCache | None, list[str]]:
    """The cache of ``train.cache``, and lines to print: what is kept, or why nothing is."""
    root = recipe.train.cache
    if root is None:
        return None, []

    def none(reason: str) -> tuple[None, list[str]]:
        return None, [f"train.cache: nothing is kept or read: {reason}"]

    if transfer.device.type != "cpu":
        return none("it works on a CPU only, where a batch gives the same bits each time")
    if recipe.train.compile:
        return none("train.compile=true computes the layers together; use train.compile=false")
    if recipe.engine.name != "ddp":
        return none(f"engine={recipe.engine.name} moves the weights about; use engine=ddp")
    context = partial(autocast, transfer.device, recipe.train.precision)
    example = _example(transfer, recipe)
    try:
        part = find_frozen_part(model, trainable.head, example, context, trainable.penalty)
    except NotFrozen as reason:
        return none(str(reason))
    cache = ActivationCache(
        root, model, part, trainable.penalty, recipe, loader, transfer, fingerprint, say
    )
    with context():
        size = part.run(example)
    bytes_each = size[0].numel() * size.element_size()
    crops = loader.steps_per_epoch * recipe.train.global_batch * recipe.train.epochs
    line = (
        f"train.cache: the outputs of {part.cut.at}, {bytes_each:,} bytes a picture, are kept in "
        f"{root}: {gib(bytes_each * crops)} for the training pictures of this seed"
    )
    return cache, [line]


def _example(transfer: BatchTransfer, recipe: Recipe) -> Tensor:
    """Noise, no more than a global batch of it: Bi-Tuning has no room for more keys."""
    pictures, side = min(_EXAMPLES, recipe.train.global_batch), transfer.preprocess.crop
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures, 3, side, side, generator=generator)
    layout: Any = torch.channels_last if transfer.channels_last else torch.contiguous_format
    return noise.to(transfer.device, transfer.dtype).contiguous(memory_format=layout)
