"""Which layers were fine-tuned for a picture, and how far that is from the class it was put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.evaluate.class_gates import ClassGates
from adafilter_dist.predict.predictor import Prediction


@dataclass(frozen=True)
class Explanation:
    """``layers``: the share of fine-tuned filters by layer, ``tuned``: of all filters.

    ``distance`` is the mean difference of the layers from those of the predicted class, ``usual``
    that of the class's own pictures; both None where the class has no figures. Shares in 0..1.
    """

    layers: dict[str, float]
    tuned: float
    class_tuned: float | None
    distance: float | None
    usual: float | None

    def mostly(self) -> str:
        """The layers of which more than half is fine-tuned, by number from 1: ``1-4, 7 of 9``."""
        numbers = [n for n, share in enumerate(self.layers.values(), 1) if share > 0.5]
        return f"{_ranges(numbers) or 'none'} of {len(self.layers)}"


@dataclass(frozen=True, eq=False)
class Explainer:
    """Explains predictions of a model with the gated layers ``names`` of so many ``filters``."""

    names: Sequence[str]
    filters: NDArray[np.int64]
    classes: Sequence[str]
    gates: ClassGates | None

    def explain(self, prediction: Prediction) -> Explanation:
        """Of a prediction whose ``tuned`` is known."""
        tuned, gates = prediction.tuned, self.gates
        assert tuned is not None
        layers = dict(zip(self.names, tuned.tolist(), strict=True))
        total = float(np.average(tuned, weights=self.filters))
        number = self.classes.index(prediction.classes[0])
        if gates is None or (distance := gates.distance(tuned, number)) is None:
            return Explanation(layers, total, None, None, None)
        of_class = gates.total(gates.means[number])
        return Explanation(layers, total, of_class, distance, float(gates.usual[number]))


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 2, 3, 7`` as ``1-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
