"""BSS: plain fine-tuning that shrinks the smallest singular values of each micro-batch's features.

Chen, Wang, Fu, Long, Wang, Catastrophic Forgetting Meets Negative Transfer: Batch Spectral
Shrinkage for Safe Transfer Learning, NeurIPS 2019. The penalty is eta times the sum of the squares
of the k smallest singular values of the matrix (pictures, features) that the classifier takes in.
eta 1e-3 and k 1 are those of the Transfer-Learning-Library
(examples/task_adaptation/image_classification/bss.py, at batches of 48), which sums over the
pictures of a batch as well: a squared singular value grows with their number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import TrainableModel
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating import micro_batches
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import BSS


def build_bss(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning with the penalty; UserError for a k that no micro-batch has."""
    method = recipe.method
    assert isinstance(method, BSS)
    trainable = build_finetune(backbone, recipe)
    classifier = trainable.model.get_submodule(trainable.classifier)
    assert isinstance(classifier, nn.Linear)
    most = min(recipe.train.micro_batch, classifier.in_features)
    if method.k > most:
        raise UserError(
            f"method.k={method.k}: the features of a micro-batch have {most} singular values "
            f"(train.micro_batch={recipe.train.micro_batch}, {classifier.in_features} features); "
            f"k may be 1 to {most}"
        )
    inputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            inputs[:] = args[:1]

    classifier.register_forward_pre_hook(keep)

    def penalty(labels: Tensor) -> Tensor:
        (features,) = inputs
        inputs.clear()
        return method.eta * smallest_singular_values(features, method.k)

    trainable.penalty = penalty
    trainable.reads_host = "method=bss waits for the singular values to converge"
    return trainable


def smallest_singular_values(features: Tensor, k: int) -> Tensor:
    """Sum of the squares of the `k` smallest singular values of features (N, D), or of all.

    The mean over the micro-batches of this forward, each a matrix of its own.
    """
    wide = features.to(accumulation_dtype(features.dtype))
    of_each = [
        torch.linalg.svdvals(part)[-k:].square().sum() for part in micro_batches.current.split(wide)
    ]
    return torch.stack(of_each).mean()
