"""AdaFilter fine-tuning of pre-trained CNNs, distributed and preemption-proof.

For a training loop of your own: `convert`, `parameter_groups`, `update_statistics`, `decide`; for a
trained model: `load`, `for_inference`, `capture`; to look at gates, or set them: `observe_gates`,
`override_gates`. docs/library.md has them all on one page.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adafilter_dist.errors import UserError
from adafilter_dist.version import __version__

if TYPE_CHECKING:
    from adafilter_dist.methods.base import parameter_groups
    from adafilter_dist.methods.export import Classifier, load
    from adafilter_dist.models.gating.convert import AdaFilterNet, convert
    from adafilter_dist.models.gating.decide import DecisionSummary, decide
    from adafilter_dist.models.gating.gate_overrides import observe_gates, override_gates
    from adafilter_dist.models.gating.step_statistics import update_statistics
    from adafilter_dist.models.inference.cuda_graph import capture
    from adafilter_dist.models.inference.selected_conv import InferenceNet, for_inference
    from adafilter_dist.recipe.sections.model import Gate

__all__ = [
    "AdaFilterNet",
    "Classifier",
    "DecisionSummary",
    "Gate",
    "InferenceNet",
    "UserError",
    "__version__",
    "capture",
    "convert",
    "decide",
    "for_inference",
    "load",
    "observe_gates",
    "override_gates",
    "parameter_groups",
    "update_statistics",
]

_HOME = {
    "AdaFilterNet": "adafilter_dist.models.gating.convert",
    "Classifier": "adafilter_dist.methods.export",
    "DecisionSummary": "adafilter_dist.models.gating.decide",
    "Gate": "adafilter_dist.recipe.sections.model",
    "InferenceNet": "adafilter_dist.models.inference.selected_conv",
    "capture": "adafilter_dist.models.inference.cuda_graph",
    "convert": "adafilter_dist.models.gating.convert",
    "decide": "adafilter_dist.models.gating.decide",
    "for_inference": "adafilter_dist.models.inference.selected_conv",
    "load": "adafilter_dist.methods.export",
    "observe_gates": "adafilter_dist.models.gating.gate_overrides",
    "override_gates": "adafilter_dist.models.gating.gate_overrides",
    "parameter_groups": "adafilter_dist.methods.base",
    "update_statistics": "adafilter_dist.models.gating.step_statistics",
}

# To a type checker any name would be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Late, so that `adafilter --help` does not wait for torch.
        if name in _HOME:
            return getattr(import_module(_HOME[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
