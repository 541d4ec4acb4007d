"""SpotTune as a method: what is routed, trained, at which rate, and for which networks."""

from __future__ import annotations

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.gating.routed_blocks import SpotTuneNet
from tests.methods.test_methods import build, names_of
from tests.methods.test_trained_layers import SOME, in_the_source, trained


@pytest.mark.parametrize("ungated", ["train", "freeze"])
def test_fine_tuned_blocks_train_what_adafilter_trains(ungated: str) -> None:
    routed, _ = build({"name": "spottune", "layers": SOME}, "resnet18", ungated=ungated)
    gated, _ = build({"name": "adafilter", "layers": SOME}, "resnet18", ungated=ungated)
    assert isinstance(routed.model, SpotTuneNet) and isinstance(gated.model, AdaFilterNet)
    # layer2.0 has a projection that matches.
    assert routed.model.block_names == [
        *("layer2.0", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
    ]
    names = {name.removeprefix("backbone.") for name in trained(routed)}
    tuned = {n.replace(".tuned.", ".") for n in names if not n.startswith("policy.")}
    frozen = {name for name in tuned if ".frozen." in name}
    assert tuned - frozen == in_the_source(gated.model)
    # Of the pre-trained copies, the BatchNorms that are trained in the fine-tuned ones.
    norms = {n for n in tuned - frozen if ".bn" in n or "downsample.1" in n}
    of_blocks = {n for n in norms if n.startswith(tuple(routed.model.block_names))}
    assert {name.replace(".frozen.", ".") for name in frozen} == of_blocks


def test_the_policy_has_its_own_rate_and_decay() -> None:
    trainable, _ = build({"name": "spottune"}, "small_resnet")
    groups, names = {g["name"]: g for g in trainable.groups}, names_of(trainable)
    policy = {n for n, _ in trainable.model.named_parameters() if n.startswith("policy.")}
    assert {*names["policy"], *names["policy_no_decay"]} == policy
    assert groups["policy"]["lr"] == groups["policy_no_decay"]["lr"] == pytest.approx(0.01)
    assert groups["policy"]["weight_decay"] == 1e-3
    assert groups["policy_no_decay"]["weight_decay"] == 0
    assert sorted(n for each in names.values() for n in each) == sorted(trained(trainable))


def test_other_networks_are_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"^method=spottune: shufflenet_v2_x0_5 has no residual blocks; .*$"
    ):
        build({"name": "spottune"}, "shufflenet_v2_x0_5")
    with pytest.raises(UserError, match=r"matches no convolution of the 8 residual blocks.*layer1"):
        build({"name": "spottune", "layers": "^conv1"}, "resnet18")
