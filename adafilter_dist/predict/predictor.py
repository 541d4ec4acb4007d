"""Pictures through a model: decoded in parallel, in batches, in the order of their files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.device import normalise
from adafilter_dist.data.prepare.read_pictures import quiet_pictures
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.errors import UserError
from adafilter_dist.methods.export import Export
from adafilter_dist.models.backbone.preprocess import pixels_of
from adafilter_dist.models.gating.gate_overrides import observe_gates
from adafilter_dist.pictures.modes import BadPicture


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one picture; ``error`` instead where the file cannot be used.

    ``classes`` and ``probabilities`` are the likeliest ones, the first the prediction. ``tuned``
    float32 (L,) is the share of fine-tuned filters in each gated layer, None unless asked for.
    """

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    tuned: NDArray[np.float32] | None = None
    error: str = ""


@dataclass(frozen=True)
class Predictor:
    """A model on its device, and how pictures get to it: ``workers`` threads, ``batch`` at once."""

    export: Export
    device: torch.device
    top: int
    batch: int
    workers: int
    explain: bool = False

    def predict(
        self, paths: Sequence[Path], done: Callable[[int], None] = lambda count: None
    ) -> Iterator[Prediction]:
        """One prediction for each path, in their order; ``done`` is told how many are decided.

        UserError where a batch does not fit into the memory of the device.
        """
        decided = 0
        with quiet_pictures(), WorkerPool(self.workers) as pool, torch.inference_mode():
            read = pool.map(self._read, paths, ahead=self.batch + self.workers)
            pairs = zip(paths, read, strict=True)
            while part := list(itertools.islice(pairs, self.batch)):
                good = [(path, pixels) for path, pixels in part if not isinstance(pixels, str)]
                answers = iter(self._answers(good) if good else [])
                for path, pixels in part:
                    if isinstance(pixels, str):
                        yield Prediction(path, error=pixels)
                    else:
                        yield next(answers)
                decided += len(part)
                done(decided)

    def _read(self, path: Path) -> NDArray[np.uint8] | str:
        """The pixels, or why there are none."""
        try:
            return pixels_of(path, self.export.preprocess)
        except BadPicture as error:
            return str(error)

    def _answers(self, pictures: Sequence[tuple[Path, NDArray[np.uint8]]]) -> list[Prediction]:
        images = self._images(torch.from_numpy(np.stack([pixels for _, pixels in pictures])))
        shares: list[Tensor] = []

        def observe(index: int, name: str, gates: Tensor, probabilities: Tensor) -> None:
            shares.append(gates.float().mean(1))

        model = self.export.model
        try:
            with observe_gates(model, observe) if self.explain else nullcontext():
                logits: Tensor = model(images)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch {self.batch}: does not fit into the memory of {self.device}; give less"
            ) from None
        # In float64, as evaluation has it: of two near classes the same one comes first.
        probabilities = logits.double().softmax(1)
        values, indices = probabilities.topk(min(self.top, probabilities.shape[1]), 1)
        names = self.export.classes
        tuned = torch.stack(shares, 1).cpu().numpy() if shares else None
        return [
            Prediction(
                path,
                tuple(names[index] for index in best),
                tuple(own),
                None if tuned is None else tuned[number],
            )
            for number, ((path, _), best, own) in enumerate(
                zip(pictures, indices.tolist(), values.tolist(), strict=True)
            )
        ]

    def _images(self, pixels: Tensor) -> Tensor:
        """uint8 (n, crop, crop, 3) as the model takes them, on its device."""
        pixels = pixels.to(self.device)
        if self.export.takes_pixels:
            return pixels
        pixels = pixels.permute(0, 3, 1, 2)
        images = torch.empty(
            pixels.shape,
            dtype=self.export.dtype,
            device=self.device,
            memory_format=torch.channels_last,
        )
        normalise(pixels, self.export.preprocess, images)
        return images
