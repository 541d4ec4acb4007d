"""The methods by name: how each is built from a backbone, and built again for its export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from adafilter_dist.methods.adafilter import build_adafilter, rebuild_adafilter
from adafilter_dist.methods.auto_rgn import build_auto_rgn
from adafilter_dist.methods.base import TrainableModel
from adafilter_dist.methods.bi_tuning import build_bi_tuning, rebuild_bi_tuning
from adafilter_dist.methods.bss import build_bss
from adafilter_dist.methods.co_tuning import build_co_tuning, rebuild_co_tuning
from adafilter_dist.methods.delta import build_delta
from adafilter_dist.methods.finetune import build_finetune, rebuild_finetune
from adafilter_dist.methods.finetune_last import build_finetune_last
from adafilter_dist.methods.l2sp import build_l2sp
from adafilter_dist.methods.layerwise_decay import build_layerwise_decay
from adafilter_dist.methods.linear_probe import build_linear_probe, rebuild_linear_probe
from adafilter_dist.methods.lp_ft import build_lp_ft, rebuild_lp_ft
from adafilter_dist.methods.spd import build_spd
from adafilter_dist.methods.spottune import build_spottune, rebuild_spottune
from adafilter_dist.methods.stochnorm import build_stochnorm
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Entry:
    """A method: ``title`` for tables and figures, ``build`` for training, ``rebuild`` for loading.

    ``rebuild`` takes the architecture with its new head, the head's path in it, and the export's
    configuration; it gives a network that the exported weights fit.
    """

    title: str
    build: Callable[[Backbone, Recipe], TrainableModel]
    rebuild: Callable[[nn.Module, str, Mapping[str, Any]], nn.Module]


METHODS = {
    "adafilter": Entry("AdaFilter", build_adafilter, rebuild_adafilter),
    "finetune": Entry("plain fine-tuning", build_finetune, rebuild_finetune),
    "finetune_last": Entry("fine-tuning of the last layers", build_finetune_last, rebuild_finetune),
    "l2sp": Entry("L2-SP", build_l2sp, rebuild_finetune),
    "layerwise_decay": Entry("layer-wise rates", build_layerwise_decay, rebuild_finetune),
    "linear_probe": Entry("linear head, trained by SGD", build_linear_probe, rebuild_linear_probe),
    "lp_ft": Entry("LP-FT", build_lp_ft, rebuild_lp_ft),
    "bss": Entry("BSS", build_bss, rebuild_finetune),
    "spottune": Entry("SpotTune", build_spottune, rebuild_spottune),
    "stochnorm": Entry("StochNorm", build_stochnorm, rebuild_finetune),
    "bi_tuning": Entry("Bi-Tuning", build_bi_tuning, rebuild_bi_tuning),
    "co_tuning": Entry("Co-Tuning", build_co_tuning, rebuild_co_tuning),
    "spd": Entry("SPD", build_spd, rebuild_finetune),
    "auto_rgn": Entry("Auto-RGN", build_auto_rgn, rebuild_finetune),
    "delta": Entry("DELTA", build_delta, rebuild_finetune),
}
"""By ``method.name``, which is also the name in an export."""


def build_method(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Apply the recipe's method to `backbone`, whose module is used up."""
    return METHODS[recipe.method.name].build(backbone, recipe)
