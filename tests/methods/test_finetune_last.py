"""Fine-tuning of the last layers: which those are, and that the others keep their bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating import step_statistics
from tests.methods.test_methods import build
from tests.methods.test_trained_layers import trained


@pytest.mark.parametrize("ungated", ["train", "freeze"])
def test_the_last_layers_in_order_of_execution(ungated: str) -> None:
    trainable, _ = build({"name": "finetune_last", "last": 3}, "resnet50", ungated=ungated)
    of_block = (f"layer4.2.{part}{n}." for n in (1, 2, 3) for part in ("conv", "bn"))
    names = trained(trainable)
    assert {name.rpartition(".")[0] + "." for name in names} == {*of_block, "fc."}
    # Of those that match: the last block's own are not among them.
    words = {"name": "finetune_last", "last": 2, "layers": r"conv1$"}
    names = trained(build(words, "resnet18", ungated=ungated)[0])
    assert {n.rpartition(".")[0] for n in names} == {
        *("layer4.0.conv1", "layer4.0.bn1", "layer4.1.conv1", "layer4.1.bn1", "fc"),
    }


def test_all_others_keep_their_bits_over_a_step() -> None:
    trainable, _ = build({"name": "finetune_last", "last": 1}, "resnet18")
    model = trainable.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(trainable.groups, momentum=0.9)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()
    step_statistics.update_statistics(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {
        n for n in before if n.startswith(("layer4.1.conv2.", "layer4.1.bn2.", "fc."))
    }


def test_scales_before_the_last_layers_are_frozen_too() -> None:
    # MobileNetV3's gates of squeeze and excitation are convolutions without a BatchNorm; its first
    # classifier layer comes after all convolutions.
    names = trained(build({"name": "finetune_last", "last": 1}, "mobilenet_v3_small")[0])
    assert {name.rpartition(".")[0] for name in names} == {
        *("features.12.0", "features.12.1", "classifier.0", "classifier.3"),
    }


def test_more_than_there_are() -> None:
    with pytest.raises(UserError, match=r"^method\.last=21: resnet18 has 20 convolutions"):
        build({"name": "finetune_last", "last": 21}, "resnet18")
    assert len(trained(build({"name": "finetune_last", "last": 20}, "resnet18")[0])) == 62
