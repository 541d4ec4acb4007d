"""AdaFilter: every gated filter chosen per image, fine-tuned or pre-trained."""

from __future__ import annotations

from functools import partial

from torch import nn

from adafilter_dist.methods.base import Built, groups_of
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.gated_conv import fix_statistics
from adafilter_dist.models.gating.penalty import penalty
from adafilter_dist.recipe.schema import AdaFilter, Recipe


def build_adafilter(backbone: Backbone, recipe: Recipe, method: AdaFilter) -> Built:
    """Convert the backbone; trunk, gate and head have rates of their own."""
    head = backbone.module.get_submodule(backbone.head)
    assert isinstance(head, nn.Linear)
    net = convert(
        backbone.module,
        size=backbone.preprocess.crop,
        gate=method.gate,
        layers=method.layers,
        ungated=recipe.model.ungated,
        head=backbone.head,
        seed=recipe.seed,
    )
    fix_statistics(net, method.fixed_statistics)
    sparsity = method.sparsity
    return Built(
        model=net,
        groups=groups_of(net, recipe.optim, f"backbone.{backbone.head}"),
        penalty=partial(penalty, net, sparsity.kind, sparsity.weight, sparsity.target),
        num_classes=head.out_features,
        name=backbone.name,
        head=backbone.head,
        method=method.name,
        gates=net.gate,
        report=net.report,
    )
