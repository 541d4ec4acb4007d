"""Forward and backward of a training step, recorded once and replayed (``train.graph``).

Recorded is what one forward of a step does: network, loss, penalty, accuracy, backward. It reads
and writes tensors that lie where they are for good: inputs, gradients, figures, batch statistics,
weights, the loss scale of fp16. Outside stay whatever speaks to other ranks or depends on numbers
of the host: the keys of the random draws, mixing, sums of gradients, reduction, clipping, update,
moving averages. On CUDA this has not run yet; the tests record on a CPU (`operator_tape`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from adafilter_dist.engine.base import Recordable
from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.ops.device_graph import CudaRecorder, Recorder, Work, agree, own_stream
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed

_EAGER = 2
"""Forwards of a kind before one is recorded: kernels are compiled and chosen in them."""
_MOST = 2
"""Kinds that are recorded: a rank's forwards in a step, of which the last may be smaller."""


@dataclass(frozen=True)
class Inputs:
    """What changes from one forward to the next, on the device, mixed already."""

    images: Tensor
    targets: Tensor
    labels: Tensor
    domain: Tensor | None

    def kind(self) -> tuple[object, ...]:
        """Equal for inputs that the same recording can take."""
        return tuple(
            None if each is None else (each.shape, each.dtype, each.stride()) for each in self._all
        )

    def copy(self) -> Inputs:
        """With memory of their own, of the same layout."""
        return Inputs(*(None if each is None else each.clone() for each in self._all))  # type: ignore[arg-type]

    def load(self, new: Inputs) -> None:
        """Take over the values of inputs of the same kind."""
        for own, other in zip(self._all, new._all, strict=True):
            if own is not None and other is not None:
                own.copy_(other)

    @property
    def _all(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


Losses = Callable[[Inputs], tuple[Tensor, Tensor, Tensor]]
"""Loss, penalty and accuracy of a forward of the network, as means over it."""


@dataclass(frozen=True)
class Recorded:
    """A forward that was recorded: `means` (loss, penalty, accuracy) and `gradients` are new."""

    means: Tensor
    gradients: list[Tensor]


@dataclass(frozen=True)
class _Recording:
    inputs: Inputs
    result: Recorded
    replay: Work


class Draws(Protocol):
    """Seeds the random draws of a forward, for as long as it runs; ``other``: with other keys."""

    def __call__(self, *, other: bool = False) -> AbstractContextManager[None]: ...


class StepGraphs:
    """The recordings of a rank's forwards, one for each kind of inputs; what is new to it is eager.

    A recording is used once it has proven itself: made with other draws and other pictures, it must
    give what the forward gives without it. `notices` are lines for the user, to be said once.
    """

    def __init__(self, engine: Recordable, model: nn.Module, recorder: Recorder) -> None:
        self.notices: list[str] = []
        self._generators: list[torch.Generator] = []
        self._engine = engine
        self._model = model
        self._recorder = recorder
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._seen: dict[tuple[object, ...], int] = {}
        self._refused = False

    @property
    def recorded(self) -> bool:
        """Whether there is a recording."""
        return bool(self._recordings)

    def memory_to_come(self, forwards: int) -> int:
        """Bytes that the first recording will add, in steps of so many forwards; 0 once it is made.

        Its gradients, and their sums where several forwards add up.
        """
        if self._refused or self._recordings:
            return 0
        sets = 2 if forwards > 1 else 1
        return sets * sum(p.numel() * p.element_size() for p in self._engine.trained)

    def forget(self) -> None:
        """Record anew: the network computes something else from now on."""
        self._recordings.clear()
        self._seen.clear()

    def generators(self, count: int, device: torch.device) -> list[torch.Generator]:
        """What the draws of ``count`` micro-batches come from, the same ones each time."""
        if count == 1:
            return []  # torch's own
        while len(self._generators) < count:
            self._generators.append(torch.Generator(device))
        return self._generators[:count]

    def ready(self, inputs: Inputs, count: int) -> bool:
        """Whether `run` may be called for these; if not, they are computed without a recording."""
        key = (count, *inputs.kind())
        if self._refused:
            return False
        if key in self._recordings:
            return True
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= _EAGER:
            return False
        if len(self._recordings) < _MOST:
            return True
        if seen == _EAGER + 1:
            self.notices.append(
                f"train.graph=auto: forwards of {len(inputs.images)} pictures are not replayed: "
                f"{_MOST} other kinds are"
            )
        return False

    def run(self, inputs: Inputs, count: int, losses: Losses, draws: Draws) -> Recorded | None:
        """One forward and backward of ``count`` micro-batches, if there is a good recording of it.

        Else None, and nothing has been done.
        """
        key = (count, *inputs.kind())
        recording = self._recordings.get(key)
        if recording is not None:
            recording.inputs.load(inputs)
            with draws():
                recording.replay()
            return recording.result
        sums = _step_sums(self._model)
        before = [each.clone() for each in sums]
        try:
            recording = self._proven(inputs, count, losses, draws, sums)
        except RuntimeError as error:
            recording = None
            self._refuse(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        if recording is None:
            torch._foreach_copy_(sums, before)
            return None
        self._recordings[key] = recording
        return recording.result

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self.forget()
        self.notices.append(
            f"train.graph=auto: steps are not replayed as a CUDA graph from here on ({reason})"
        )

    def _proven(
        self, inputs: Inputs, count: int, losses: Losses, draws: Draws, sums: list[Tensor]
    ) -> _Recording | None:
        """A recording whose replay has just done this forward; None where it must not be used.

        RuntimeError where the forward cannot be recorded.
        """
        before = [each.clone() for each in sums]

        # What it should give. An overflow shows nothing.
        with draws():
            means, gradients = self._compute(inputs, count, losses)
        wanted = [means, *gradients, *(each.clone() for each in sums)]
        del gradients
        if not _all_finite(wanted):
            return None

        # What it gives, recorded with other numbers.
        torch._foreach_copy_(sums, before)
        own = inputs.copy()
        own.images.copy_(inputs.images.flip(0))
        with draws(other=True):
            recording = self._record(own, count, losses)
        torch._foreach_copy_(sums, before)
        own.load(inputs)
        with draws():
            recording.replay()
        result = recording.result
        if not agree([result.means, *result.gradients, *sums], wanted):
            self._refuse("a replay gave other numbers than the step itself")
            return None
        return recording

    def _compute(
        self, inputs: Inputs, count: int, losses: Losses
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, penalty, accuracy = losses(inputs)
        # Means over the forward, times their number: sums over its micro-batches.
        gradients = self._engine.gradients((loss + penalty) * count)
        return torch.stack([loss.detach(), penalty.detach(), accuracy]), gradients

    def _record(self, inputs: Inputs, count: int, losses: Losses) -> _Recording:
        gradients = [torch.empty_like(parameter) for parameter in self._engine.trained]
        means = torch.empty(3, dtype=gradients[0].dtype, device=inputs.images.device)

        def work() -> None:
            made = self._compute(inputs, count, losses)
            with torch.no_grad():
                means.copy_(made[0])
                torch._foreach_copy_(gradients, list(made[1]))

        replay = self._recorder.record(work, self.generators(count, inputs.images.device))
        return _Recording(inputs, Recorded(means, gradients), replay)


def _all_finite(tensors: list[Tensor]) -> bool:
    return bool(torch.stack([each.isfinite().all() for each in tensors]).all())


def _step_sums(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward adds to: none of the state's."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]


def recorder_of(
    recipe: Recipe, trainable: TrainableModel, device: torch.device
) -> tuple[Recorder | None, list[str]]:
    """What records the steps (None: they stay eager), and a line that says why not.

    On CUDA this thread works on a stream of its own from then on: call it before anything lies on
    the device.
    """
    if recipe.train.graph == "off" or device.type != "cuda":
        return None, []
    if reason := why_not_recorded(recipe, trainable):
        return None, [f"train.graph=auto: steps are not replayed as a CUDA graph: {reason}"]
    own_stream(device)
    return CudaRecorder(device), []


def why_not_recorded(recipe: Recipe, trainable: TrainableModel) -> str:
    """Why a step cannot be replayed as a CUDA graph; empty where it can."""
    if isinstance(recipe.engine, DeepSpeed):
        return "DeepSpeed reduces gradients while they are computed"
    if recipe.train.compile:
        return "train.compile=true puts together kernels of its own"
    if recipe.train.cache is not None:
        return "with train.cache the first layers are left out of some forwards"
    return trainable.reads_host
