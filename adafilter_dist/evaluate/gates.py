"""Do the gates decide? Accuracy with learned, permuted and averaged gates, and each layer's gates.

A mean gate near one half says nothing: a frozen random partition of the filters has it too. Gates
matter per image only if accuracy falls when every image gets another image's gates, and when every
filter gets its mean gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adafilter_dist.evaluate.forward_pass import EvalBatches, ForwardSettings, OutcomeRows, sweep
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.evaluate.scores import Difference, Evaluation
from adafilter_dist.models.gating.gate import find_gate, observe_gates, override_gates

# Sets this use of the seed apart from every other one.
_STREAM = 0x6A7E


@dataclass(frozen=True)
class LayerGates:
    """Gates of one layer over all images. 1 = fine-tuned filter, 0 = pre-trained filter.

    ``variance`` is over images: the mean over filters of p(1-p), p the filter's mean gate; 0.25 at
    most. ``constant`` is the share of filters whose gate is the same for every image.
    """

    name: str
    filters: int
    mean: float
    variance: float
    constant: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class GateEvaluation:
    """The same images three times: learned gates, another image's gates, each filter's mean gate.

    ``permuted`` is None for a single image. The costs are learned minus the other, in top-1.
    """

    learned: Evaluation
    permuted: Evaluation | None
    averaged: Evaluation
    permuting_costs: Difference | None
    averaging_costs: Difference
    layers: list[LayerGates]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the confusion matrices."""
        return {
            "learned": self.learned.to_dict(),
            "permuted": self.permuted.to_dict() if self.permuted else None,
            "averaged": self.averaged.to_dict(),
            "permuting_costs": self.permuting_costs.to_dict() if self.permuting_costs else None,
            "averaging_costs": self.averaging_costs.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def partners(n: int, seed: int) -> np.ndarray:
    """int64 (n,): whose gates each image gets; one random cycle, so never its own (n >= 2)."""
    order = np.random.Generator(np.random.Philox([seed, _STREAM])).permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, -1)
    return partner


class _Recorder:
    """Binary gates of every image: layers side by side, eight gates to the byte."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._rows = Rows(n, device)
        self._batch: list[Tensor] = []

    def observe(self, index: int, name: str, gates: Tensor, probabilities: Tensor) -> None:
        self._batch.append(gates.detach())

    def store(self, positions: Tensor) -> None:
        gates = torch.cat(self._batch, dim=1)
        self._batch.clear()
        bits = gates.bool()
        if not torch.equal(bits.to(gates.dtype), gates):
            raise RuntimeError("at evaluation gates must be exactly 0 or 1")
        self._rows.add(positions, bits=torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=1)))

    def complete(self, filters: int) -> np.ndarray:
        empty = torch.empty((0, (filters + 7) // 8), dtype=torch.uint8)
        return self._rows.complete(bits=empty)["bits"].numpy()


def _unpacked(bits: np.ndarray, filters: int) -> np.ndarray:
    return np.unpackbits(bits, axis=1, count=filters)


def _mean_gates(bits: np.ndarray, filters: int) -> np.ndarray:
    """float64 (filters,): each filter's mean gate over all images, a chunk of them at a time."""
    counts = np.zeros(filters, dtype=np.int64)
    for start in range(0, len(bits), 1024):
        counts += _unpacked(bits[start : start + 1024], filters).sum(axis=0, dtype=np.int64)
    return counts / len(bits)


def _layers(names: list[str], widths: list[int], means: np.ndarray) -> list[LayerGates]:
    described = []
    for name, p in zip(names, np.split(means, np.cumsum(widths)[:-1]), strict=True):
        described.append(
            LayerGates(
                name=name,
                filters=len(p),
                mean=float(p.mean()),
                variance=float((p * (1 - p)).mean()),
                constant=float(((p == 0) | (p == 1)).mean()),
            )
        )
    return described


def _replay(gates: Tensor, widths: list[int]) -> Callable[[int, Tensor], Tensor]:
    """Gates (b or 1, filters) in the place of a network's own, layer by layer."""
    parts = gates.split(widths, dim=1)
    return lambda index, own: parts[index].to(own).expand_as(own)


def evaluate_gates(
    model: nn.Module,
    loader: EvalBatches,
    settings: ForwardSettings,
    num_classes: int,
    seed: int = 0,
) -> GateEvaluation:
    """Learned gates in one pass; permuted and mean gates, both known by then, in a second one.

    Partners are drawn over the whole data set, not within a batch: stored sets are sorted by
    class, and a neighbour's gates would be those of the same class. They depend on ``seed`` and
    the number of images alone, so any world size gives the same figures. Keeps one bit per image
    and filter (84 MB for ResNet-50 on 25,250 images). Collective; errors as in ``evaluate``;
    ValueError for a model without gates.
    """
    n = loader.total
    gate = find_gate(model)
    widths = [one.out_features for one in gate.outputs if isinstance(one, nn.Linear)]
    filters = sum(widths)
    recorder = _Recorder(n, settings.device)
    learned, permuted, averaged = (OutcomeRows(n, num_classes, settings.device) for _ in range(3))

    def first(positions: Tensor, labels: Tensor, forward: Callable[[], Tensor]) -> None:
        with observe_gates(model, recorder.observe):
            learned.add(positions, forward(), labels)
        recorder.store(positions)

    def second(positions: Tensor, labels: Tensor, forward: Callable[[], Tensor]) -> None:
        with override_gates(model, _replay(mean_gates, widths)):
            averaged.add(positions, forward(), labels)
        if n > 1:
            others = _unpacked(bits[partner[positions.numpy()]], filters)
            with override_gates(model, _replay(torch.from_numpy(others), widths)):
                permuted.add(positions, forward(), labels)

    sweep(model, loader, settings, first)
    bits = recorder.complete(filters)
    means = _mean_gates(bits, filters)
    mean_gates = torch.from_numpy(means)[None]
    partner = partners(n, seed)
    sweep(model, loader, settings, second)

    own, mean = learned.complete(), averaged.complete()
    other = permuted.complete() if n > 1 else None
    return GateEvaluation(
        learned=Evaluation.of(own, num_classes, loader.domains),
        permuted=Evaluation.of(other, num_classes, loader.domains) if other else None,
        averaged=Evaluation.of(mean, num_classes, loader.domains),
        permuting_costs=Difference.between(own, other) if other else None,
        averaging_costs=Difference.between(own, mean),
        layers=_layers(gate.names, widths, means),
    )
