"""How good a model is, every image counted exactly once on any number of ranks."""

from adafilter_dist.evaluate.gates import GateEvaluation, LayerGates, evaluate_gates
from adafilter_dist.evaluate.scores import Difference, Evaluation, Outcomes
from adafilter_dist.evaluate.sweep import Batches, evaluate, sweep

__all__ = [
    "Batches",
    "Difference",
    "Evaluation",
    "GateEvaluation",
    "LayerGates",
    "Outcomes",
    "evaluate",
    "evaluate_gates",
    "sweep",
]
