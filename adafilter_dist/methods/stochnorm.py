"""StochNorm: plain fine-tuning whose BatchNorms choose between two kinds of statistics by a coin.

Kou, You, Long, Wang, Stochastic Normalization, NeurIPS 2020. In training, a coin a channel and
micro-batch chooses the statistics of the micro-batch (with probability p) or the running ones,
which begin as the pre-trained network's. p 0.5 is that of the Transfer-Learning-Library
(tllib/normalization/stochnorm.py), whose coins come from NumPy's generator; ours belong to seed,
step and micro-batch. Running statistics move once a step, there with every batch. An export
predicts as any BatchNorm does, and has no coins if it is trained on.
"""

from __future__ import annotations

from adafilter_dist.methods.base import TrainableModel, without_gates
from adafilter_dist.methods.trained_layers import restricted
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.stochnorm import replace_by_stochnorm
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import StochNorm


def build_stochnorm(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """The backbone with a coin in each BatchNorm that is trained."""
    method = recipe.method
    assert isinstance(method, StochNorm)
    model = replace_by_stochnorm(restricted(backbone, recipe), method.p)
    return without_gates(model, backbone, recipe, backbone.head)
