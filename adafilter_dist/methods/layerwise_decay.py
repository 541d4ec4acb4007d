"""Fine-tuning with learning rates that fall from the head to the first layer.

A layer at depth l of L has the rate lr d^(L - l); the head is at L. Discriminative fine-tuning of
Howard and Ruder, ULMFiT, ACL 2018 (layer by layer 1/2.6), in this form by Clark et al., ELECTRA,
ICLR 2020. The default d = 0.75 is that of BEiT and MAE, and of timm
(timm/optim/_param_groups.py, `param_groups_layer_decay`), whose depths these are: the stem, then
each block. A ResNet-50 has 16 blocks, so that its stem learns at 0.75^17 = 0.0075 of the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from adafilter_dist.methods.base import TrainableModel
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import LayerwiseDecay

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def build_layerwise_decay(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning, its groups split by depth; optim.lr_head stays the head's own rate."""
    method = recipe.method
    assert isinstance(method, LayerwiseDecay)
    trainable = build_finetune(backbone, recipe)
    depth = depths(trainable.model, trainable.classifier)
    names = {parameter: name for name, parameter in trainable.model.named_parameters()}
    last = max(depth.values())
    groups: list[dict[str, Any]] = []
    for group in trainable.groups:
        at: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            at.setdefault(depth[names[parameter]], []).append(parameter)
        for level, parameters in sorted(at.items()):
            rate = group["lr"] * method.decay ** (last - level)
            name = f"{group['name']}_{level:03d}"
            groups.append(group | {"name": name, "params": parameters, "lr": rate})
    trainable.groups = groups
    return trainable


def depths(model: nn.Module, head: str) -> dict[str, int]:
    """Depth of each parameter by name, from 0; the classifier at path `head` is deepest, alone.

    A layer is a module inside the network's containers and stages that is none itself: a block, or
    a convolution outside of blocks. One with no weights of more than one dimension, such as a
    BatchNorm, belongs to the layer before.
    """
    levels: dict[str, int] = {}
    level = -1
    for path, module in _layers(model, "", head):
        if path == head:
            continue
        if level < 0 or any(p.ndim > 1 for p in module.parameters()):
            level += 1
        levels |= {f"{path}.{name}".strip("."): level for name, _ in module.named_parameters()}
    for name, _ in model.named_parameters():
        if name.startswith(f"{head}."):
            levels[name] = level + 1
        else:
            levels.setdefault(name, 0)  # the network's own, such as a token or a scale of pixels
    return levels


def _is_stage(module: nn.Module) -> bool:
    """Whether this is blocks of one class, one after the other, though no nn.Sequential."""
    kinds = {type(child) for child in module.children()}
    return len(kinds) == 1 and any(True for _ in next(iter(module.children())).children())


def _layers(module: nn.Module, path: str, head: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        holds_head = head.startswith(f"{inner}.")
        if isinstance(child, _CONTAINERS) or _is_stage(child) or holds_head:
            yield from _layers(child, inner, head)
        elif any(True for _ in child.parameters()):
            yield inner, child
