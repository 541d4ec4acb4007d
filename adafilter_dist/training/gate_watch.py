"""Warns after an epoch if most layers' gates were the same for every image."""

from __future__ import annotations

from torch import Tensor

from adafilter_dist.models.gating.gate import RecurrentGate

CONSTANT = 1e-3
"""Variance over images (0.25 at most) under which a layer's gates are called constant."""


class GateWatch:
    """Averages each layer's gate variance over an epoch's steps, on the device."""

    def __init__(self, gate: RecurrentGate | None) -> None:
        self._gate = gate
        self._sum: Tensor | None = None
        self._mean: Tensor | None = None
        self._steps = 0
        self._last_warning = ""

    def step(self) -> None:
        """Count the step just taken."""
        if self._gate is None:
            return
        variance, mean = self._gate.last_variance.detach(), self._gate.last_mean.detach()
        self._sum = variance.clone() if self._sum is None else self._sum + variance
        self._mean = mean.clone() if self._mean is None else self._mean + mean
        self._steps += 1

    def end_epoch(self) -> list[str]:
        """Warnings about the epoch that ended, unless they are the last one's; starts the next."""
        if self._sum is None or self._mean is None:
            return []
        variance, mean = self._sum / self._steps, self._mean / self._steps
        self._sum = self._mean = None
        self._steps = 0
        constant = int((variance < CONSTANT).sum())
        if constant * 2 <= len(variance):
            return []
        share = float(mean.mean())
        kind = (
            "all but plain fine-tuning"
            if share > 0.95
            else "all but feature extraction"
            if share < 0.05
            else "a fixed partition of the filters"
        )
        warning = (
            f"in {constant} of {len(variance)} layers the gates were the same for every image in "
            f"this epoch (mean gate {share:.2f}: {kind}); {self._advice()}"
        )
        repeated, self._last_warning = warning == self._last_warning, warning
        return [] if repeated else [warning]

    def _advice(self) -> str:
        if self._gate is not None and self._gate.picture is not None:
            return (
                "by the losses measured for its decision it does not pay to divide the pictures "
                "(gate_decision in events.jsonl); method.gate.lean and contrast shift that"
            )
        return "raise optim.lr_gate or method.gate.init_scale, or set method.sparsity.kind=decide"
