"""SpotTune's network against its formula, written with the source network's own modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from adafilter_dist.models.backbone.zoo.small_resnet import SmallResNet
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.models.gating.residual_blocks import find_residual_blocks
from adafilter_dist.models.gating.routed_blocks import SpotTuneNet
from tests.models.networks import randomise


def routed(model: nn.Module, **settings: Any) -> SpotTuneNet:
    randomise(model, seed=1)
    blocks = find_residual_blocks(model)
    return SpotTuneNet(replace_batchnorm(model), blocks, **settings).double()


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=4)


def forced(net: SpotTuneNet, choices: Tensor) -> SpotTuneNet:
    net.choices = lambda images: choices  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("make", [resnet, SmallResNet])
def test_at_the_start_it_is_the_source_network_whatever_is_chosen(make: Any) -> None:
    model = make()
    randomise(model, seed=1)
    x = torch.randn(5, 3, 40, 40, dtype=torch.float64)
    wanted = copy.deepcopy(model).double().eval()(x)
    net = routed(model).eval()
    torch.testing.assert_close(net(x), wanted)
    assert set(net.choices(x).unique().tolist()) <= {0.0, 1.0}
    assert net.choices(x).shape == (5, len(net.block_names))


def test_a_forward_is_that_of_the_chosen_block_for_each_picture() -> None:
    torch.manual_seed(0)
    net = routed(SmallResNet()).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".tuned." in name:
                parameter += 0.1 * torch.randn_like(parameter)
    x = torch.randn(6, 3, 28, 28, dtype=torch.float64)
    choices = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    found = forced(net, choices.double())(x)
    source: Any = net.backbone
    for picture, row in enumerate(choices.tolist()):
        y = source.stem(x[picture : picture + 1]).relu()
        for block, choice in zip(source.blocks, row, strict=True):
            own = block.tuned if choice else block.frozen
            y = (own.second(own.first(y).relu()) + own.shortcut(y)).relu()
        logits = source.head(y.mean((2, 3)))
        torch.testing.assert_close(found[picture : picture + 1], logits)
    assert len({tuple(row) for row in found.tolist()}) == 6


def test_the_policys_gradient_is_that_of_gumbel_softmax() -> None:
    """Two Gumbel variables, softmax at T = 5, straight-through; by finite differences."""
    net = routed(SmallResNet(), temperature=5.0).train()
    x = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    weights = torch.randn(4, 3, dtype=torch.float64)
    torch.manual_seed(3)
    uniform = torch.rand(4, 3, dtype=torch.float64)  # what the network draws with this seed

    torch.manual_seed(3)
    choices = net.choices(x)
    (choices * weights).sum().backward()
    bias = net.policy.get_parameter("linear.bias")
    assert bias.grad is not None

    # log(u / (1 - u)) is the difference of two Gumbels: g1 of any second uniform number, g0 by it.
    second = torch.rand(4, 3, dtype=torch.float64)
    one = -(-second.log()).log()
    zero = one - torch.logit(uniform)

    def soft(moved: Tensor) -> Tensor:
        with torch.no_grad():
            logits = net.policy(x) + moved.view(1, 3, 2)
        noisy = (logits + torch.stack((zero, one), -1)) / 5.0
        return (noisy.softmax(-1)[..., 1] * weights).sum()

    with torch.no_grad():
        hard = (net.policy(x) + torch.stack((zero, one), -1)).argmax(-1)
    assert torch.equal(choices.detach(), hard.double()) and 0 < hard.sum() < 12
    for place in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[place] = 1e-6
        difference = (soft(step) - soft(-step)) / 2e-6
        torch.testing.assert_close(bias.grad[place], difference, rtol=1e-6, atol=1e-9)


def test_frozen_blocks_keep_their_convolutions_and_train_their_batchnorms() -> None:
    net = routed(SmallResNet()).train()
    with torch.no_grad():  # where both copies are the same, the policy has no gradient
        net.get_parameter("backbone.blocks.1.tuned.second.0.weight").mul_(1.5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained = [p for p in net.parameters() if p.requires_grad]
    torch.manual_seed(0)
    net(torch.randn(16, 3, 28, 28, dtype=torch.float64)).square().sum().backward()
    torch.optim.SGD(trained, lr=0.1, weight_decay=0.1).step()
    step_statistics.update_statistics(net)
    same = {name for name, t in net.state_dict().items() if torch.equal(t, before[name])}
    assert same == {n for n in before if ".frozen." in n and before[n].ndim == 4}


def test_sampling_in_evaluation_follows_the_probability_and_the_picture() -> None:
    torch.manual_seed(0)
    net = routed(SmallResNet(), sample=True, seed=5).eval()
    x = torch.randn(2000, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        net.policy.get_parameter("linear.weight").zero_()
        net.policy.get_parameter("linear.bias").copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.5, 0.0]))
        drawn = net.choices(x)
        assert torch.equal(net.choices(x[7:9]), drawn[7:9])
    # P = softmax of the two logits, whatever the temperature.
    wanted = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64).sigmoid()
    assert ((drawn.mean(0) - wanted).abs() < 4 * (wanted * (1 - wanted) / 2000).sqrt()).all()
    net.sample = False
    assert torch.equal(net.choices(x[:1]), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        *(("resnet50", 16, "layer1.0"), ("resnext50_32x4d", 16, "layer1.0")),
        *(("mobilenet_v2", 10, "features.3"), ("vgg11_bn", 0, ""), ("densenet121", 0, "")),
        ("googlenet", 0, ""),
    ],
)
def test_residual_blocks_of_networks(name: str, count: int, first: str) -> None:
    with torch.device("meta"):
        settings = {"init_weights": False} if name in ("vgg11_bn", "googlenet") else {}
        blocks = find_residual_blocks(torchvision.models.get_model(name, **settings))
    assert len(blocks) == count and (blocks[:1] == [first] or not count)
