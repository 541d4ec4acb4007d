"""Exponential moving average of the trained parameters; buffers are the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Shadow parameters, moved once a step that was not skipped."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._shadow = {n: p.detach().clone() for n, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """shadow = decay * shadow + (1 - decay) * parameter."""
        live = [parameter.detach() for parameter in self._live.values()]
        torch._foreach_lerp_(list(self._shadow.values()), live, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged parameters inside, its own again outside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._live.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._shadow[name])
            self._shadow[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The shadow parameters by name."""
        return dict(self._shadow)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over shadow parameters; the model's own where the average is only begun now."""
        for name, shadow in self._shadow.items():
            shadow.copy_(state[name] if state else self._live[name].detach())
