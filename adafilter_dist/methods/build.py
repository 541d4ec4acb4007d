"""From a backbone and a recipe to a model that can be trained."""

from __future__ import annotations

from adafilter_dist.methods.adafilter import build_adafilter
from adafilter_dist.methods.base import Built
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.methods.linear_probe import build_linear_probe
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import AdaFilter, FineTune, Recipe


def build_method(backbone: Backbone, recipe: Recipe) -> Built:
    """Apply the recipe's method to `backbone`, whose module is used up."""
    if isinstance(recipe.method, AdaFilter):
        return build_adafilter(backbone, recipe, recipe.method)
    if isinstance(recipe.method, FineTune):
        return build_finetune(backbone, recipe)
    return build_linear_probe(backbone, recipe)
