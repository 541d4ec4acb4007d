"""Holds the layers still that no gate covers, or would cover."""

from __future__ import annotations

from torch import nn

from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.find_pairs import Pairs


def freeze_ungated(model: nn.Module, pairs: Pairs) -> None:
    """Keep convolutions and BatchNorms outside `pairs.gated` as they were pre-trained.

    `model` is converted by `pairs` or not, and its BatchNorms are `MicroBatchNorm2d`: they keep
    weights and running statistics. The layers before the first one trained need no backward.
    """
    for name, _ in pairs.left_out:
        model.get_submodule(name).requires_grad_(False)
    # After conversion both BatchNorms of a pair are inside the layer at the convolution's path.
    inside = tuple(f"{pair.conv}." for pair in pairs.gated)
    trained = {pair.batchnorm for pair in pairs.gated}
    for name, module in model.named_modules():
        if isinstance(module, MicroBatchNorm2d) and not (
            name in trained or name.startswith(inside)
        ):
            module.freeze()
