"""AdaFilter: every gated filter chosen per image, fine-tuned or pre-trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from adafilter_dist.methods.base import TrainableModel, groups_of
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.convert import convert, convert_pairs
from adafilter_dist.models.gating.find_pairs import Pair, Pairs
from adafilter_dist.models.gating.gated_conv import fix_statistics
from adafilter_dist.models.gating.penalty import penalty
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.model import AdaFilter, Gate
from adafilter_dist.recipe.younger_keys import VALUE_BEFORE_KEY


def build_adafilter(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Convert the backbone; trunk, gate and head have rates of their own."""
    method = recipe.method
    assert isinstance(method, AdaFilter)
    head = backbone.module.get_submodule(backbone.head)
    assert isinstance(head, nn.Linear)
    net = convert(
        backbone.module,
        size=backbone.preprocess.crop,
        gate=method.gate,
        layers=method.layers,
        ungated=recipe.model.ungated,
        batchnorm="shared" if method.shared_batchnorm else method.batchnorm,
        head=backbone.head,
        seed=recipe.seed,
    )
    fix_statistics(net, method.fixed_statistics)
    sparsity = method.sparsity
    of_gates = partial(penalty, net, sparsity.kind, sparsity.weight, sparsity.target)
    return TrainableModel(
        model=net,
        groups=groups_of(net, recipe.optim, f"backbone.{backbone.head}"),
        penalty=lambda labels: of_gates(),
        num_classes=head.out_features,
        name=backbone.name,
        head=backbone.head,
        classifier=f"backbone.{backbone.head}",
        method=method.name,
        gates=net.gate,
        report=net.report,
        reads_host=""
        if method.fixed_statistics == "none"
        else f"with method.fixed_statistics={method.fixed_statistics} the host is told which "
        "filters were chosen",
    )


def rebuild_adafilter(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export, with the pairs that were gated then."""
    pairs = Pairs(
        tuple(Pair(*names) for names in config["layers"]),
        tuple((name, reason) for name, reason in config["left_out"]),
        "given",
    )
    # An export without these keys is older than them.
    gate = Gate(**{"recipe": "paper"} | config["gate"])
    batchnorm = config.get("batchnorm", VALUE_BEFORE_KEY["method.batchnorm"])
    return convert_pairs(module, pairs, gate=gate, batchnorm=batchnorm, head=head)
