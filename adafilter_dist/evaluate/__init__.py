"""How good a model is, every image counted exactly once on any number of ranks.

Tables, figures and files of it are in `report`.
"""

from adafilter_dist.evaluate.evaluator import Evaluator
from adafilter_dist.evaluate.forward_pass import EvalBatches, ForwardSettings, evaluate, sweep
from adafilter_dist.evaluate.gates import GateEvaluation, LayerGates, evaluate_gates
from adafilter_dist.evaluate.scores import Difference, Evaluation, OfDomain, Outcomes

__all__ = [
    "Difference",
    "EvalBatches",
    "Evaluation",
    "Evaluator",
    "ForwardSettings",
    "GateEvaluation",
    "LayerGates",
    "OfDomain",
    "Outcomes",
    "evaluate",
    "evaluate_gates",
    "sweep",
]
