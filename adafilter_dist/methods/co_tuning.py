"""Co-Tuning: the pre-trained classifier stays beside the new one, and is trained along.

You et al., Co-Tuning for Transfer Learning, NeurIPS 2020. Loss: the cross entropy of the new head,
plus `strength` times that of the source head's prediction with p(y_source | y_target), which is
measured before the first step (`source_relation.py`). The default 2.3, a source head that is
trained at the backbone's rate, and the direct relation are those of thuml/Transfer-Learning-Library
(tllib/regularization/co_tuning.py and its example); thuml/CoTuning, by the paper's authors, has the
same strength and the calibrated relation. Their source classifier is also calibrated, by pictures
with source labels (for ImageNet a factor of 0.884 on the logits); a run has no such pictures, so
that here its logits are as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import (
    Start,
    StartData,
    TrainableModel,
    require_whole_pictures,
    without_gates,
)
from adafilter_dist.methods.finetune import rebuild_finetune
from adafilter_dist.methods.source_relation import calibrated_relation, direct_relation
from adafilter_dist.methods.trained_layers import restricted
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import CoTuning


class TwoHeads(nn.Linear):
    """The new classifier `new`, and beside it the pre-trained one, `source`.

    Features (N, D) -> logits (N, classes). In training `source_logits` (N, source classes) are
    those of the last forward. `relation` (classes, source classes) is zero until it is measured.
    """

    relation: Tensor

    def __init__(self, new: nn.Linear, source: nn.Linear) -> None:
        kind: dict[str, Any] = {"device": new.weight.device, "dtype": new.weight.dtype}
        with torch.device("meta"):
            super().__init__(new.in_features, new.out_features)
        self.weight, self.bias = new.weight, new.bias
        self.source = skip_init(nn.Linear, source.in_features, source.out_features, **kind)
        self.source.load_state_dict(source.state_dict())
        relation = torch.zeros(new.out_features, source.out_features, **kind)
        self.register_buffer("relation", relation)
        self.source_logits: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.source_logits = self.source(features) if self.training else None
        return super().forward(features)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor of an autograd graph cannot be copied with the module.
        return self.__dict__ | {"source_logits": None}

    def penalty(self, labels: Tensor) -> Tensor:
        """Cross entropy of the last forward's source logits with the relation of the labels."""
        logits, self.source_logits = self.source_logits, None
        assert logits is not None, "a forward in training comes first"
        logits = logits.to(accumulation_dtype(logits.dtype))
        targets = self.relation[labels].to(logits.dtype)
        return -(targets * functional.log_softmax(logits, 1)).sum(1).mean()


def build_co_tuning(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning with both heads; UserError where the weights have no classifier."""
    method = recipe.method
    assert isinstance(method, CoTuning)
    require_whole_pictures(recipe)
    source = backbone.source_head
    if source is None:
        raise UserError(
            f"method=co_tuning needs the classifier of the pre-trained weights, and "
            f"{backbone.source} has no {backbone.head}.weight that fits; use other model.weights, "
            "or another method"
        )
    model = restricted(backbone, recipe)
    new = model.get_submodule(backbone.head)
    assert isinstance(new, nn.Linear)
    heads = TwoHeads(new, source)
    model.set_submodule(backbone.head, heads.train(new.training))
    trainable = without_gates(model, backbone, recipe, backbone.head)
    _source_at_rate(trainable.groups, heads.source, recipe.optim.lr)
    prefix = f"{backbone.head}."
    before = source.weight.detach().double(), source.bias.detach().double()

    def start(data: StartData) -> Start:
        def predict(x: Tensor) -> Tensor:
            return functional.linear(x.double(), *before).softmax(1)

        train = predict(data.train.x), data.train.y
        note = ""
        if method.relation == "direct":
            relation = direct_relation(*train, data.num_classes)
        else:
            if data.val is None:
                raise UserError(
                    "method.relation=calibrated needs a validation split; set data.val_fraction, "
                    "or method.relation=direct"
                )
            val = predict(data.val.x), data.val.y
            relation, note = calibrated_relation(train, val, data.num_classes)
        share = relation.max(1).values.mean()
        return Start(
            {f"{prefix}relation": relation},
            f"measured p(source class | class) on {len(data.train.y):,} pictures, {len(relation)} "
            f"classes of {relation.shape[1]} source classes; the likeliest has {share:.0%} in the "
            f"mean{note}",
        )

    def exported(state: dict[str, Tensor]) -> dict[str, Tensor]:
        unused = (f"{prefix}source.", f"{prefix}relation")
        return {name: tensor for name, tensor in state.items() if not name.startswith(unused)}

    trainable.penalty = lambda labels: method.strength * heads.penalty(labels)
    trainable.start = start
    trainable.exported = exported
    return trainable


def _source_at_rate(groups: list[dict[str, Any]], source: nn.Linear, rate: float) -> None:
    """Give the source head the trunk's rate; by its path it is in the head's groups."""
    for group in [group for group in groups if group["name"].startswith("head")]:
        own = [p for p in group["params"] if any(p is other for other in source.parameters())]
        group["params"] = [p for p in group["params"] if all(p is not other for other in own)]
        name = group["name"].replace("head", "source_head")
        groups.append(group | {"name": name, "params": own, "lr": rate})


def rebuild_co_tuning(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export: the new head alone."""
    return rebuild_finetune(module, head, config)
