"""Exponential moving average of the trained parameters; buffers are the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adafilter_dist.engine.base import Engine


class ModelEma:
    """Averaged ("shadow") parameters, updated after each step that was not skipped.

    Each rank holds the average of the parts of the parameters that the engine gave it.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine = engine
        self._decay = decay
        self._shadow = {name: part.detach().clone() for name, part in engine.parts().items()}

    @torch.no_grad()
    def update(self) -> None:
        """shadow = decay * shadow + (1 - decay) * parameter."""
        live = [part.detach() for part in self._engine.parts().values()]
        torch._foreach_lerp_(list(self._shadow.values()), live, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are the averaged ones inside, their own again outside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, part in self._engine.parts().items():
            kept = part.detach().clone()
            part.copy_(self._shadow[name])
            self._shadow[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The whole shadow parameters by name; collective."""
        return self._engine.gathered(self._shadow)

    def load(self, state: dict[str, Tensor]) -> None:
        """Load averaged parameters; with an empty ``state`` the average starts from the model's."""
        live = self._engine.parts()
        for name, shadow in self._shadow.items():
            part = self._engine.part_of(name, state[name]) if state else live[name].detach()
            shadow.copy_(part)
