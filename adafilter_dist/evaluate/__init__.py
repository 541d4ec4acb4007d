"""How good a model is, every image counted exactly once on any number of ranks.

Tables, figures and files of it are in `report`.
"""

from adafilter_dist.evaluate.ablations import Ablation
from adafilter_dist.evaluate.evaluator import Evaluator
from adafilter_dist.evaluate.forward_pass import (
    EvalBatches,
    ForwardSettings,
    evaluate,
    outcomes_of,
    sweep,
)
from adafilter_dist.evaluate.gate_figures import DomainGates, GateFigures, LayerGates
from adafilter_dist.evaluate.gates import GateEvaluation, evaluate_gates
from adafilter_dist.evaluate.scores import Difference, Evaluation, OfDomain, Outcomes

__all__ = [
    "Ablation",
    "Difference",
    "DomainGates",
    "EvalBatches",
    "Evaluation",
    "Evaluator",
    "ForwardSettings",
    "GateEvaluation",
    "GateFigures",
    "LayerGates",
    "OfDomain",
    "Outcomes",
    "evaluate",
    "evaluate_gates",
    "outcomes_of",
    "sweep",
]
