"""Which layers a baseline trains: those that AdaFilter trains with the same words."""

from __future__ import annotations

import torch
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.models.gating.find_pairs import Pairs, find_pairs
from adafilter_dist.models.gating.freeze import freeze_ungated
from adafilter_dist.models.gating.modes import trial_copy
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import Baseline


def restricted(backbone: Backbone, recipe: Recipe) -> nn.Module:
    """The backbone's module, BatchNorms replaced, what is not to be trained frozen.

    With model.ungated=freeze those are all convolutions but the ones that match method.layers and
    have a BatchNorm2d directly behind, and all BatchNorms but theirs. Raises UserError where
    nothing matches.
    """
    method = recipe.method
    assert isinstance(method, Baseline)
    freeze = recipe.model.ungated == "freeze" and method.layers is not None
    pairs = pairs_of(backbone, recipe) if freeze or method.layers not in (None, ".*") else None
    model = replace_batchnorm(backbone.module)
    if freeze and pairs is not None:
        freeze_ungated(model, pairs)
    return model


def pairs_of(backbone: Backbone, recipe: Recipe) -> Pairs:
    """The pairs that AdaFilter would gate; the backbone must not be changed yet."""
    method, crop = recipe.method, backbone.preprocess.crop
    example = torch.zeros(2, 3, crop, crop, dtype=next(backbone.module.parameters()).dtype)
    try:
        return find_pairs(trial_copy(backbone.module), example, method.layers or ".*")
    except UserError as error:
        where = f"method={method.name} with model.ungated={recipe.model.ungated}"
        raise UserError(f"{where}: {error}") from None
