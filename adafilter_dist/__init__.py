"""AdaFilter fine-tuning of pre-trained CNNs, distributed and preemption-proof.

For a training loop of your own: `convert`, `parameter_groups`, `update_statistics`; for a trained
model: `load`, `for_inference`, `capture`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adafilter_dist.version import __version__

if TYPE_CHECKING:
    from adafilter_dist.methods.base import parameter_groups
    from adafilter_dist.methods.export import load
    from adafilter_dist.models.gating.convert import convert
    from adafilter_dist.models.gating.decide import decide
    from adafilter_dist.models.gating.step_statistics import update_statistics
    from adafilter_dist.models.inference.cuda_graph import capture
    from adafilter_dist.models.inference.selected_conv import for_inference

__all__ = [
    "__version__",
    "capture",
    "convert",
    "decide",
    "for_inference",
    "load",
    "parameter_groups",
    "update_statistics",
]

_HOME = {
    "capture": "adafilter_dist.models.inference.cuda_graph",
    "convert": "adafilter_dist.models.gating.convert",
    "decide": "adafilter_dist.models.gating.decide",
    "for_inference": "adafilter_dist.models.inference.selected_conv",
    "load": "adafilter_dist.methods.export",
    "parameter_groups": "adafilter_dist.methods.base",
    "update_statistics": "adafilter_dist.models.gating.step_statistics",
}


def __getattr__(name: str) -> Any:
    # Late, so that `adafilter --help` does not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
