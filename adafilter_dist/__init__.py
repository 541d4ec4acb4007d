"""AdaFilter fine-tuning of pre-trained CNNs, distributed and preemption-proof.

For a training loop of your own: `convert`, `parameter_groups`, `update_statistics`; for a trained
model: `load`, `for_inference`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adafilter_dist.methods.base import parameter_groups
    from adafilter_dist.models.convert import convert
    from adafilter_dist.models.export import load
    from adafilter_dist.models.selected import for_inference
    from adafilter_dist.models.statistics import update_statistics

__version__ = "0.2.0"
__all__ = [
    "__version__",
    "convert",
    "for_inference",
    "load",
    "parameter_groups",
    "update_statistics",
]

_HOME = {
    "convert": "adafilter_dist.models.convert",
    "for_inference": "adafilter_dist.models.selected",
    "load": "adafilter_dist.models.export",
    "parameter_groups": "adafilter_dist.methods.base",
    "update_statistics": "adafilter_dist.models.statistics",
}


def __getattr__(name: str) -> Any:
    # Late, so that `adafilter --help` does not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
