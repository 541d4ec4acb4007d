"""What an evaluated run has to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adafilter_dist.evaluate import Difference, Evaluation, GateEvaluation, Outcomes
from adafilter_dist.evaluate.ablations import TITLES
from adafilter_dist.evaluate.gate_probe import GateMovement
from adafilter_dist.evaluate.linear_probe import Probe
from adafilter_dist.evaluate.wilson import wilson
from adafilter_dist.methods.build import METHODS
from adafilter_dist.report.control import ControlResult


@dataclass(frozen=True)
class Bar:
    """One accuracy of the comparison: top-1 as a share, of ``n`` images; a remark or ''.

    ``nested``: an ablation of the method told above it. ``less``: the run's accuracy minus this.
    """

    title: str
    top1: float
    n: int
    remark: str = ""
    nested: bool = False
    less: Difference | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ``top1`` over images."""
        return wilson(round(self.top1 * self.n), self.n)


@dataclass(frozen=True)
class RunCost:
    """What training took on the first rank, in its last attempt: means over its ``steps``.

    ``step_cpu_seconds`` is the CPU time of the process. ``peak_memory`` is in bytes, what torch had
    allocated on a GPU (``memory_of``: device), or the whole process (process). The times are None
    where the last attempt had no step left to do.
    """

    trained_parameters: int
    steps: int
    step_seconds: float | None
    step_cpu_seconds: float | None
    peak_memory: int
    memory_of: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Results:
    """Figures of one run on one split; ``gates`` only for methods that have gates.

    ``gate_learns``: they were to be learned, and are no control (`method.gate.mode`). ``outcomes``
    are those of each picture, which ``evaluation`` sums up.
    """

    recipe: str
    seed: int
    method: str
    split: str
    evaluation: Evaluation
    gates: GateEvaluation | None = None
    probe: Probe | None = None
    control: ControlResult | None = None
    movement: GateMovement | None = None
    gate_learns: bool = True
    outcomes: Outcomes | None = None
    cost: RunCost | None = None

    @property
    def gate_warning(self) -> str | None:
        """What to say of a gate that was to learn, and never left its start."""
        if self.movement is None or not self.gate_learns:
            return None
        return self.movement.warning()

    def bars(self) -> list[Bar]:
        """The accuracies to compare, in the order of the report."""
        bars = []
        if self.probe is not None:
            edge = ", the edge of its grid" if self.probe.at_edge else ""
            remark = f"L2 {self.probe.strength:g}{edge}"
            bars.append(_bar("linear probe on frozen features", self.probe.test, remark))
        if self.control is not None:
            title = f"control: {METHODS[self.control.method].title}, {self.control.run.name}"
            bars.append(_bar(title, self.control.evaluation, less=self.control.difference))
        bars.append(_bar(METHODS[self.method].title, self.evaluation))
        if self.gates is not None:
            for name, one in self.gates.ablations.items():
                few = one.evaluation.n
                remark = f"{few:,} pictures" if few < self.evaluation.n else ""
                title = TITLES[name]
                bars.append(_bar(title, one.evaluation, remark, nested=True, less=one.difference))
        return bars

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the confusion matrix included."""
        return {
            "recipe": self.recipe,
            "seed": self.seed,
            "method": self.method,
            "split": self.split,
            "evaluation": self.evaluation.to_dict(confusion=True),
            "gates": self.gates.to_dict() if self.gates else None,
            "gate_movement": self.movement.to_dict() if self.movement else None,
            "probe": self.probe.to_dict() if self.probe else None,
            "control": self.control.to_dict() if self.control else None,
            "cost": self.cost.to_dict() if self.cost else None,
        }


def _bar(
    title: str,
    evaluation: Evaluation,
    remark: str = "",
    nested: bool = False,
    less: Difference | None = None,
) -> Bar:
    return Bar(title, evaluation.top1, evaluation.n, remark, nested, less)
