"""L2-SP: weights are pulled to where they started, and not to zero.

Li, Grandvalet, Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks,
ICML 2018: the loss has alpha/2 ||w - w0||^2 + beta/2 ||w_head||^2 added to it, in place of weight
decay. The defaults, alpha = beta = 0.01, are those of Transfer-Learning-Library (thuml), examples
task_adaptation/image_classification/delta.py, which penalises BatchNorm's scales and shifts too, as
is done here. A head of the weights (model.head=pretrained) is pulled to its own start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import TrainableModel
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.methods.start_weights import StartWeights
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import L2SP
from adafilter_dist.recipe.sections.engine import DeepSpeed


def build_l2sp(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning with the penalty, and without weight decay.

    UserError under ZeRO-3, where no rank has whole weights to compare with their start.
    """
    method, engine = recipe.method, recipe.engine
    assert isinstance(method, L2SP)
    if isinstance(engine, DeepSpeed) and engine.zero_stage == 3:
        raise UserError(
            "method=l2sp: compares whole weights with their start in each step, which "
            "engine.zero_stage=3 shares out among the ranks; use engine.zero_stage=2 or less"
        )
    trainable = build_finetune(backbone, recipe)
    for group in trainable.groups:
        group["weight_decay"] = 0.0
    pulled, head = _split(trainable, shared_head=recipe.model.head == "pretrained")
    start = StartWeights(pulled)
    trainable.keep_beside("start_weights", start)

    def penalty(labels: Tensor) -> Tensor:
        away = [now - then for now, then in zip(pulled, start.values(), strict=True)]
        to_start, to_zero = _half_squares(away, labels), _half_squares(head, labels)
        return method.alpha * to_start + method.beta * to_zero

    trainable.penalty = penalty
    return trainable


def _split(
    trainable: TrainableModel, *, shared_head: bool
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What is trained: what is pulled to its start, and what to zero."""
    trained = [(n, p) for n, p in trainable.model.named_parameters() if p.requires_grad]
    new = {n for n, _ in trained if n.startswith(f"{trainable.classifier}.") and not shared_head}
    return [p for n, p in trained if n not in new], [p for n, p in trained if n in new]


def _half_squares(tensors: list[Tensor] | list[nn.Parameter], like: Tensor) -> Tensor:
    if not tensors:
        return torch.zeros((), device=like.device)
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum() / 2
