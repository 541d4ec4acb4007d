"""What the loop asks of an engine, and the state that engines exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass
class FullState:
    """The whole training state, engine-neutral: the same under every engine and world size.

    ``model`` holds parameters and persistent buffers by name; ``optimizer`` holds each tensor of
    optimizer state as ``<parameter name>/<key>``; ``scaler`` is plain numbers. A new part
    also goes into ``tensors``, into ``_copy`` of `checkpoint/saver.py`, into ``load`` of
    `checkpoint/store.py`, and into the state that each engine gives and takes.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with a name that says where it belongs."""
        for part in ("model", "optimizer", "ema"):
            for name, tensor in getattr(self, part).items():
                yield f"{part}: {name}", tensor


class Recordable(Protocol):
    """What a step is recorded with (``train.graph``): nothing in it speaks to other ranks."""

    trained: list[nn.Parameter]

    def forward_alone(self, images: Tensor) -> Tensor:
        """`Engine.forward` of this rank's own network."""

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        """What `Engine.backward` would add to the gradients of `trained`, which stay as they are.

        RuntimeError where one of them has none.
        """
        ...

    def add_gradients(self, gradients: Sequence[Tensor], *, last: bool) -> None:
        """Add them; with the ``last`` of this rank's share the sums are reduced over the ranks.

        They are read here, or, if these are the step's only ones, until it has been taken.
        """


class Engine(Protocol):
    """Runs micro-batches and optimizer steps; the loop knows no engine by name."""

    model: nn.Module
    dtype: torch.dtype
    described: str
    """What runs, and how, in a few words; empty for what needs no mention."""
    recordable: Recordable | None
    """None where forward and backward cannot be recorded."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) in at least fp32."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; ``last`` of this rank's share."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's loss."""

    def step(self, factor: float) -> bool:
        """Clip, update with every base rate times ``factor``; False if fp16 skipped the step."""

    def reduce(self, flat: Tensor) -> Tensor:
        """Sum of ``flat`` over ranks."""

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """One forward and backward whose results are thrown away."""

    def full_state(self) -> FullState:
        """The whole state; every rank calls it, the tensors are on this rank's device."""

    def load_full_state(self, state: FullState) -> None:
        """Take over a state that any engine at any world size gave."""

    def set_values(self, values: dict[str, Tensor]) -> None:
        """Replace whole parameters and persistent buffers of `model` by name, for good.

        Collective; every rank gives the same. UserError for other names or shapes.
        """

    def parts(self) -> dict[str, Tensor]:
        """This rank's part of each trained parameter by name.

        They may be written in place for a while, as for an evaluation; `set_values` is for good.
        """

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor that belongs to a trained parameter."""

    def gathered(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from every rank's parts; collective."""

    def whole_model(self) -> AbstractContextManager[nn.Module]:
        """The network with whole parameters inside, for evaluation and export; collective."""


class Replicated:
    """The part of an engine for which every rank holds whole parameters."""

    model: nn.Module

    def parts(self) -> dict[str, Tensor]:
        """The trained parameters themselves."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """All of it."""
        return whole

    def gathered(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """As they are."""
        return dict(parts)

    def whole_model(self) -> AbstractContextManager[nn.Module]:
        """The network as it is."""
        return nullcontext(self.model)
