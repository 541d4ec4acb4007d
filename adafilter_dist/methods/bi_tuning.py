"""Bi-Tuning: fine-tuning with two contrastive losses over queues of keys, one queue a class.

Zhong et al., Bi-tuning of Pre-trained Representations, 2020 (arXiv 2011.06182). Beside the cross
entropy: the contrastive cross entropy, which compares the classifier's row of the picture's class
with features of all classes, and the categorical contrastive loss, which compares the picture's
projection with projections of all classes. Positives are the picture's own key and the keys of its
class. Keys come from a slow copy of the network, moved by momentum after each update. K 40,
m 0.999, T 0.07, 128 projections and the weight 1 of both terms were read in
thuml/Transfer-Learning-Library (tllib/regularization/bi_tuning.py and its example), as was this:
features get a 1 for the bias, and they and the classifier's rows, which get no gradient from it,
are normalised; queues begin with random unit vectors; the projection has the backbone's rate.

Two things are other than there. A key is of the mirrored picture where pictures are mirrored
(augment.flip), else of the picture itself; there it is of a second random crop. And both losses see
the queues as they were before the step; there the queue of features holds the batch already.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import TrainableModel, require_whole_pictures, without_gates
from adafilter_dist.methods.finetune import rebuild_finetune
from adafilter_dist.methods.key_queues import KeyQueues
from adafilter_dist.methods.trained_layers import restricted
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.step_statistics import StepStatistics
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import BiTuning
from adafilter_dist.recipe.sections.engine import DeepSpeed


class RememberingLinear(nn.Linear):
    """The classifier; in training `features` (N, D) are the inputs of its last forward."""

    def __init__(self, source: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(source.in_features, source.out_features)
        self.weight, self.bias = source.weight, source.bias
        self.features: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.features = features if self.training else None
        return super().forward(features)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor of an autograd graph cannot be copied with the module.
        return self.__dict__ | {"features": None}


class Encoder(nn.Module):
    """A backbone and a projection beside its classifier, which lies at the path `head`."""

    def __init__(self, backbone: nn.Module, head: str, projector: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, C), features (N, D + 1) and projections (N, P), the last two of norm 1."""
        logits: Tensor = self.backbone(images)
        head = self.backbone.get_submodule(self.head)
        assert isinstance(head, RememberingLinear) and head.features is not None
        features, head.features = head.features, None
        projected = self.projector(features)
        wide = accumulation_dtype(features.dtype)
        features = functional.pad(features.to(wide), (0, 1), value=1.0)
        return (
            logits,
            functional.normalize(features, dim=1),
            functional.normalize(projected.to(wide), dim=1),
        )


class BiTuningNet(nn.Module, StepStatistics):
    """images (N, 3, H, W) -> logits (N, classes); in training it also computes the losses' parts.

    The key encoder is all buffers: no optimizer reaches it, and checkpoints hold it. In evaluation
    only the query encoder's backbone runs.
    """

    def __init__(
        self,
        query: Encoder,
        features: KeyQueues,
        projections: KeyQueues,
        settings: BiTuning,
        mirrored: bool,
    ) -> None:
        super().__init__()
        self.query = query
        self.key = copy.deepcopy(query)
        _make_buffers(self.key)
        self.features, self.projections = features, projections
        self._momentum, self._temperature = settings.momentum, settings.temperature
        self._mirrored = mirrored
        self._last: tuple[Tensor, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tensors of an autograd graph cannot be copied with the module.
        return self.__dict__ | {"_last": None}

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            evaluated: Tensor = self.query.backbone(images)
            return evaluated
        logits: Tensor
        logits, features, projections = self.query(images)
        with torch.no_grad():
            _, *keys = self.key(images.flip(3) if self._mirrored else images)
        self._last = features, projections, *keys
        return logits

    def losses(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Contrastive cross entropy and categorical contrastive loss of the last forward.

        Means over its pictures; its keys wait for the queues.
        """
        assert self._last is not None, "a forward in training comes first"
        features, projections, key_features, key_projections = self._last
        self._last = None
        head = self.query.backbone.get_submodule(self.query.head)
        assert isinstance(head, nn.Linear)
        rows = torch.cat([head.weight, head.bias[:, None]], 1).detach().to(features.dtype)
        own_row = functional.normalize(rows, dim=1)[labels]

        # The classifier's row of the picture's class, against features.
        queue = self.features.keys.to(features.dtype)
        entropy = self._contrast((own_row * features).sum(1), own_row, queue, labels)
        # The picture's projection, against projections.
        queue = self.projections.keys.to(projections.dtype)
        own_key = (projections * key_projections).sum(1)
        categorical = self._contrast(own_key, projections, queue, labels)

        self.features.add(key_features, labels)
        self.projections.add(key_projections, labels)
        return entropy, categorical

    def _contrast(self, own: Tensor, anchors: Tensor, queue: Tensor, labels: Tensor) -> Tensor:
        """KL divergence of softmax(similarities / T) from "alike on all positives, 0 elsewhere".

        ``own`` (N,) is the similarity with the picture's own key, or of its own features; queue
        (C, K, W) against anchors (N, W).
        """
        classes, size, width = queue.shape
        similar = torch.cat([own[:, None], anchors @ queue.view(-1, width).T], 1)
        logs = functional.log_softmax(similar / self._temperature, 1)
        every = torch.arange(len(labels), device=labels.device)
        of_class = logs[:, 1:].view(-1, classes, size)[every, labels]
        positive = (logs[:, 0] + of_class.sum(1)) / (size + 1)
        return -positive.mean() - math.log(size + 1)

    def step_statistics(self) -> list[Tensor]:
        return [self.features.waiting.flatten(), self.projections.waiting.flatten()]

    @torch.no_grad()
    def apply_step_statistics(self, means: list[Tensor]) -> None:
        self.features.take(means[0])
        self.projections.take(means[1])
        keys, queries = zip(*self._pairs(), strict=True)
        torch._foreach_lerp_(list(keys), [query.detach() for query in queries], 1 - self._momentum)

    def discard_step_statistics(self) -> None:
        self.features.clear()
        self.projections.clear()

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What moves and where to: every parameter, no statistics of BatchNorms."""
        keys = dict(self.key.named_buffers())
        for name, query in self.query.named_parameters():
            yield keys[name], query


def _make_buffers(module: nn.Module) -> None:
    """Make every parameter of the module a buffer of the same name."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())


def build_bi_tuning(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning with both losses; UserError under ZeRO-3, and where pictures are mixed."""
    method, train = recipe.method, recipe.train
    assert isinstance(method, BiTuning)
    require_whole_pictures(recipe)
    if isinstance(recipe.engine, DeepSpeed) and recipe.engine.zero_stage == 3:
        raise UserError(
            "method=bi_tuning moves a copy of the weights after each update, for which "
            "engine.zero_stage=3 has them on no rank; use engine.zero_stage=2 or engine=ddp"
        )
    model = restricted(backbone, recipe)
    head = model.get_submodule(backbone.head)
    assert isinstance(head, nn.Linear)
    model.set_submodule(backbone.head, RememberingLinear(head).train(head.training))

    # Drawn from the seed alone, in this order.
    generator = torch.Generator().manual_seed(recipe.seed)
    width, pictures = head.in_features, train.global_batch
    with torch.device("meta"):
        projector = nn.Linear(width, method.projection)
    projector = projector.to_empty(device="cpu").to(head.weight.dtype)
    with torch.no_grad():
        for parameter in projector.parameters():
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2 * drawn - 1) * width**-0.5)
    features, projections = (
        KeyQueues(head.out_features, method.queue, size, pictures, generator)
        for size in (width + 1, method.projection)
    )
    encoder = Encoder(model, backbone.head, projector)
    mirrored = recipe.augment.flip > 0
    net = BiTuningNet(encoder, features, projections, method, mirrored)
    trainable = without_gates(net, backbone, recipe, f"query.backbone.{backbone.head}")

    def penalty(labels: Tensor) -> Tensor:
        entropy, categorical = net.losses(labels)
        return method.strength * (entropy + categorical)

    def exported(state: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = "query.backbone."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }

    trainable.penalty, trainable.exported = penalty, exported
    trainable.reads_host = "method=bi_tuning puts keys in rows that the host counts"
    return trainable


def rebuild_bi_tuning(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export: the query encoder's backbone."""
    return rebuild_finetune(module, head, config)
