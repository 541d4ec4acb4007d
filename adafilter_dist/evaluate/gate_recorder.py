"""Records the gates of every picture of an evaluation, one bit each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.models.gating.control_gates import gates_by_layer
from adafilter_dist.models.gating.gate import RecurrentGate, find_gate
from adafilter_dist.models.gating.gate_overrides import observe_gates


def widths_of(model: nn.Module) -> list[int]:
    """How many gates each layer has, in order of execution; ValueError for a model without."""
    return [one.out_features for one in find_gate(model).outputs if isinstance(one, nn.Linear)]


def has_bits(model: nn.Module) -> bool:
    """Whether the gates of ``model`` are exactly 0 or 1 in evaluation; False without gates.

    Those of some controls (`method.gate.mode`) are a blend of both filters.
    """
    gates = [module for module in model.modules() if isinstance(module, RecurrentGate)]
    if not gates:
        return False
    settings = gates[0].settings
    oracle = settings.oracle or {}
    named = gates_by_layer(oracle, list(oracle), len(gates[0].names)).unique().tolist()
    return settings.mode not in ("bernoulli", "constant") and {*named} <= {0, 1}


class GateRecorder:
    """Binary gates of ``n`` pictures: layers side by side, eight gates to the byte.

    With ``only`` (m,), ascending positions, just of these.
    """

    def __init__(
        self,
        model: nn.Module,
        n: int,
        device: torch.device,
        only: NDArray[np.int64] | None = None,
    ) -> None:
        self._model = model
        self.filters = sum(widths_of(model))
        kept = torch.arange(n) if only is None else torch.from_numpy(only)
        self._row = torch.full((n,), -1).index_copy(0, kept, torch.arange(len(kept)))
        self._rows = Rows(len(kept), device)
        self._batch: list[Tensor] = []

    @contextmanager
    def batch(self, positions: Tensor) -> Iterator[None]:
        """Around the forward of the pictures at ``positions``: one forward, whose gates are kept.

        RuntimeError for gates that are not exactly 0 or 1.
        """
        self._batch.clear()
        with observe_gates(self._model, self._observe):
            yield
        row = self._row[positions.cpu()]
        kept = row >= 0
        gates = torch.cat([part[kept.to(part.device)] for part in self._batch], dim=1)
        self._batch.clear()
        bits = gates.bool()
        if not torch.equal(bits.to(gates.dtype), gates):
            raise RuntimeError("at evaluation gates must be exactly 0 or 1")
        self._rows.add(row[kept], bits=torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=1)))

    def _observe(self, index: int, name: str, gates: Tensor, probabilities: Tensor) -> None:
        self._batch.append(gates.detach())

    def complete(self) -> NDArray[np.uint8]:
        """uint8 (n or m, bytes): the packed gates in order of position; collective."""
        empty = torch.empty((0, (self.filters + 7) // 8), dtype=torch.uint8)
        bits: NDArray[np.uint8] = self._rows.complete(bits=empty)["bits"].numpy()
        return bits
