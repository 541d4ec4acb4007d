"""Which gates are constant over images, and how many are something else on other images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from adafilter_dist.models.gating.gate import RecurrentGate


class GateCounts:
    """An observer of gates: how many images chose each tuned filter, by layer.

    With ``expected`` (int8 (C_out,) by layer; 1, 0 or -1 for anything) it also counts the gates
    that are something else than expected.
    """

    def __init__(self, gate: RecurrentGate, expected: Mapping[str, Tensor] | None = None) -> None:
        self._names = gate.names
        widths = [len(one.bias) for one in gate.outputs]  # type: ignore[arg-type]
        device = gate.running_mean.device
        self._sums = [torch.zeros(width, dtype=torch.int64, device=device) for width in widths]
        self._expected = {name: values.to(device) for name, values in (expected or {}).items()}
        # Gates that are something else, gates with an expectation, images.
        self._others = torch.zeros(3, dtype=torch.int64, device=device)

    def observe(self, index: int, name: str, gates: Tensor, probabilities: Tensor) -> None:
        """For `observe_gates`: gates (N, C_out) of exactly 0 and 1."""
        bits = gates.bool()
        self._sums[index] += bits.sum(0)
        if index == 0:
            self._others[2] += len(bits)
        expected = self._expected.get(name)
        if expected is not None:
            taken = expected >= 0
            self._others[0] += ((bits != (expected > 0)) & taken).sum()
            self._others[1] += len(bits) * taken.sum()

    def complete(self) -> tuple[dict[str, Tensor], int, int, int]:
        """(tuned choices by layer, images, gates not as expected, gates with an expectation).

        Over all ranks; collective.
        """
        every = torch.cat([*self._sums, self._others])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(every)
        *sums, others = every.cpu().split([len(one) for one in self._sums] + [3])
        other, expected, images = others.tolist()
        return dict(zip(self._names, sums, strict=True)), images, other, expected
