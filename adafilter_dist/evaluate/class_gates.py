"""How much of each layer is fine-tuned for the pictures of a class.

One picture is compared with it. Measured once on labelled pictures, and kept beside the model as
class-gates.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.evaluate.forward_pass import EvalBatches, ForwardSettings, sweep
from adafilter_dist.evaluate.gate_recorder import widths_of
from adafilter_dist.models.gating.gate import find_gate
from adafilter_dist.models.gating.gate_overrides import observe_gates
from adafilter_dist.run.files import CLASS_GATES
from adafilter_dist.system.files import write_bytes

_FORMAT = "1"

Shares = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassGates:
    """Shares of fine-tuned filters by class and layer, of a model whose weights have ``model``.

    ``means`` float32 (C, L); ``usual`` float32 (C,) is the mean distance of a class's own pictures
    from it; ``pictures`` int64 (C,), 0 where a class has none: then its row means nothing.
    ``layers`` names the layers, ``filters`` int64 (L,) says how many each has, ``split`` which
    pictures these were. ``model`` is the sha256 in the weights' file.
    """

    means: Shares
    usual: Shares
    pictures: NDArray[np.int64]
    filters: NDArray[np.int64]
    layers: list[str]
    split: str
    model: str

    def total(self, tuned: Shares) -> float:
        """The share of all filters, from the shares (L,) of the layers."""
        return float(np.average(tuned, weights=self.filters))

    def distance(self, tuned: Shares, number: int) -> float | None:
        """How far a picture's shares (L,) are from those of class ``number``, in 0..1.

        The mean of the layers' differences, each as often as it has filters. None for a class
        without pictures.
        """
        if not self.pictures[number]:
            return None
        return float(np.average(np.abs(tuned - self.means[number]), weights=self.filters))

    def write(self, folder: Path) -> None:
        """Keep them in ``folder``; the file appears whole or not at all."""
        tensors: dict[str, NDArray[Any]] = {
            "means": self.means,
            "usual": self.usual,
            "pictures": self.pictures,
            "filters": self.filters,
        }
        about = {"format": _FORMAT, "model": self.model, "split": self.split}
        about["layers"] = json.dumps(self.layers)
        write_bytes(folder / CLASS_GATES, safetensors.numpy.save(tensors, about))


def read_class_gates(folder: Path, model: str) -> ClassGates | None:
    """Those kept in ``folder`` for the weights ``model``; None where there are none of these."""
    path = folder / CLASS_GATES
    try:
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT or about.get("model") != model:
                return None
            names = ("means", "usual", "pictures", "filters")
            columns = {name: file.get_tensor(name) for name in names}
        return ClassGates(
            **columns, layers=json.loads(about["layers"]), split=about["split"], model=model
        )
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from None


def measure_class_gates(
    net: nn.Module,
    loader: EvalBatches,
    settings: ForwardSettings,
    num_classes: int,
    *,
    split: str,
    model: str,
    done: Callable[[int], None] = lambda count: None,
) -> ClassGates:
    """One pass of ``net`` over labelled pictures, in this process alone."""
    filters = np.array(widths_of(net), np.int64)
    shares, labels = np.zeros((loader.total, len(filters)), np.float32), []
    parts: list[Tensor] = []

    def observe(index: int, name: str, gates: Tensor, probabilities: Tensor) -> None:
        parts.append(gates.float().mean(1))

    def visit(positions: Tensor, own: Tensor, forward: Callable[[], Tensor]) -> None:
        parts.clear()
        forward()
        shares[positions.numpy()] = torch.stack(parts, 1).cpu().numpy()
        labels.append((positions, own.cpu()))
        done(sum(len(each) for each, _ in labels))

    with observe_gates(net, observe):
        sweep(net, loader, settings, visit)
    own = np.zeros(loader.total, np.int64)
    for positions, values in labels:
        own[positions.numpy()] = values.numpy()
    means = np.zeros((num_classes, len(filters)), np.float32)
    usual = np.zeros(num_classes, np.float32)
    for number in np.unique(own):
        of_class = shares[own == number]
        means[number] = of_class.mean(0)
        distances = np.average(np.abs(of_class - means[number]), axis=1, weights=filters)
        usual[number] = distances.mean()
    pictures = np.bincount(own, minlength=num_classes)
    return ClassGates(means, usual, pictures, filters, find_gate(net).names, split, model)
