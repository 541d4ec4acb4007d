"""SpotTune: each residual block pre-trained or fine-tuned, chosen for each picture by a policy.

Guo et al., SpotTune: Transfer Learning through Adaptive Fine-tuning, CVPR 2019. Defaults are those
of the authors' code (gyhui14/spottune: main.py, gumbel_softmax.py, agent_net.py): temperature 5,
the policy at a tenth of the network's rate with weight decay 1e-3. Its schedule of rates is not
copied: an `if` in place of an `elif` there undoes two of three drops. There the policy is sampled
in tests, too; here that is method.sample=true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import TrainableModel, without_gates
from adafilter_dist.methods.trained_layers import pairs_of, restricted
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.models.gating.modes import trial_copy
from adafilter_dist.models.gating.residual_blocks import find_residual_blocks
from adafilter_dist.models.gating.routed_blocks import SpotTuneNet
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import SpotTune


def build_spottune(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Route the residual blocks that hold a layer which AdaFilter would gate.

    UserError for a network without such blocks.
    """
    method = recipe.method
    assert isinstance(method, SpotTune)
    net = SpotTuneNet(
        *_with_blocks(backbone, recipe),
        temperature=method.temperature,
        sample=method.sample,
        seed=recipe.seed,
    )
    trainable = without_gates(net, backbone, recipe, f"backbone.{backbone.head}")
    policy = set(net.policy.parameters())
    groups = [
        group | {"params": [p for p in group["params"] if p not in policy]}
        for group in trainable.groups
    ]
    rate = recipe.optim.lr * method.policy_rate
    for name, decay in (("policy", method.policy_weight_decay), ("policy_no_decay", 0.0)):
        own = [p for p in net.policy.parameters() if (p.ndim > 1) == (name == "policy")]
        groups.append({"name": name, "params": own, "lr": rate, "weight_decay": decay})
    trainable.groups = groups
    return trainable


def _with_blocks(backbone: Backbone, recipe: Recipe) -> tuple[nn.Module, list[str]]:
    """The backbone with what is not trained frozen, and the paths of the blocks to route."""
    every = find_residual_blocks(trial_copy(backbone.module))
    if not every:
        raise UserError(
            f"method=spottune: {backbone.name} has no residual blocks; choose a network made of "
            "them (resnet18, resnet50, resnext50_32x4d, regnet_y_400mf, small_resnet)"
        )
    gated = [pair.conv for pair in pairs_of(backbone, recipe).gated]
    blocks = [name for name in every if any(conv.startswith(f"{name}.") for conv in gated)]
    if not blocks:
        raise UserError(
            f"method=spottune: method.layers={recipe.method.layers} matches no convolution of the "
            f"{len(every)} residual blocks of {backbone.name}; they are {every[0]} ... {every[-1]}"
        )
    return restricted(backbone, recipe), blocks


def rebuild_spottune(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export, with the blocks that were routed then."""
    module = replace_batchnorm(module)
    return SpotTuneNet(module, config["blocks"], sample=config["sample"], seed=config["seed"])
