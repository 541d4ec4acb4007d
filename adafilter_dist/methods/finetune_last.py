"""Fine-tuning of the last layers alone; those before them stay as they were pre-trained.

Yosinski et al., How transferable are features in deep neural networks?, NeurIPS 2014, count layers
from the end, as later comparisons do ("fine-tuning last-k", k = 1, 2, 3, in Guo et al., SpotTune,
CVPR 2019). A layer is a convolution with its BatchNorm, in order of execution, the ones that
AdaFilter would gate: that is defined for every network, while stages and blocks are not. The last
block of a ResNet-50 is three of them, which is the default.
"""

from __future__ import annotations

from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import TrainableModel, without_gates
from adafilter_dist.methods.trained_layers import pairs_of
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.models.gating.find_pairs import Pair, Pairs
from adafilter_dist.models.gating.freeze import freeze_ungated
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import FineTuneLast


def build_finetune_last(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Train the last ``method.last`` layers, what comes after them, and the head."""
    method = recipe.method
    assert isinstance(method, FineTuneLast)
    pairs = pairs_of(backbone, recipe)
    if method.last > len(pairs.gated):
        raise UserError(
            f"method.last={method.last}: {backbone.name} has {len(pairs.gated)} convolutions with "
            f"a BatchNorm that match method.layers={method.layers}; give at most that, or use "
            "method=finetune"
        )
    model = replace_batchnorm(backbone.module)
    last = pairs.gated[-method.last :]
    _freeze_before(model, last)
    earlier = tuple((pair.conv, "before the last") for pair in pairs.gated[: -method.last])
    freeze_ungated(model, Pairs(last, pairs.left_out + earlier, pairs.found_by))
    return without_gates(model, backbone, recipe, backbone.head)


def _freeze_before(model: nn.Module, last: tuple[Pair, ...]) -> None:
    """Freeze parameters of other kinds, such as scales, that stand before the trained layers."""
    trained = {f"{pair.conv}.weight" for pair in last}
    for name, parameter in model.named_parameters():
        if name in trained:
            return
        parameter.requires_grad_(False)
