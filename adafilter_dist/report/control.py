"""A control run: another run's accuracy on the same pictures, subtracted picture by picture.

The control that says whether learned gates are of use is the same recipe with a gate that is never
trained (`method.gate.mode=frozen`); plain fine-tuning (`method=finetune`) is the other one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from adafilter_dist.data.stored.prepared import SplitName
from adafilter_dist.data.stored.views import in_classes
from adafilter_dist.evaluate import Difference, Evaluation, Evaluator, Outcomes, outcomes_of
from adafilter_dist.evaluate.gate_figures import GateFigures, group_counts
from adafilter_dist.evaluate.gate_recorder import GateRecorder, has_bits
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.ops.dtypes import weights_dtype


@dataclass(frozen=True)
class ControlModel:
    """The best model of a control run, and how it wants its pictures."""

    run: Path
    method: str
    model: nn.Module
    preprocess: Preprocess
    classes: list[str]


@dataclass(frozen=True)
class ControlResult:
    """``difference``: top-1 of the run minus that of the control, paired by picture.

    ``gates``: figures of the control's gates on these pictures; None where it has none of 0 and 1.
    """

    run: Path
    method: str
    evaluation: Evaluation
    difference: Difference
    gates: GateFigures | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the confusion matrix."""
        return {
            "run": str(self.run),
            "method": self.method,
            **self.evaluation.to_dict(),
            "run_minus_control": self.difference.to_dict(),
            "gates": self.gates.to_dict() if self.gates else None,
        }


def compare_with_control(
    own: Outcomes, control: ControlModel, evaluator: Evaluator, split: SplitName
) -> ControlResult:
    """Measure the control on the pictures of ``own``; collective."""
    evaluator = replace(
        evaluator,
        prepared=in_classes(evaluator.prepared, control.classes),
        preprocess=control.preprocess,
    )
    loader, classes = evaluator.loader(split), evaluator.num_classes
    model = control.model.to(
        evaluator.world.device, weights_dtype(evaluator.recipe.train.precision)
    )
    settings, gates = evaluator.settings, None
    recorder = GateRecorder(model, loader.total, settings.device) if has_bits(model) else None
    outcomes = outcomes_of(model, loader, settings, classes, recorder)
    if recorder is not None:
        bits, filters = recorder.complete(), recorder.filters
        counts = group_counts(bits, filters, outcomes.labels, classes, loader.domains)
        gates = GateFigures.of(*counts)
    return ControlResult(
        run=control.run,
        method=control.method,
        evaluation=Evaluation.of(outcomes, classes, loader.domains),
        difference=Difference.between(own, outcomes),
        gates=gates,
    )
