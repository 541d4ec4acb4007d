from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn

from adafilter_dist.models.behind import absorb
from adafilter_dist.models.convert import AdaFilterNet, convert
from adafilter_dist.models.gated import set_kernels


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)) + x)
        return y


class ChoosesByTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.dropout(self.bn(self.conv(x)), 0.5, self.training)
        z: Tensor = self.relu(y)
        return z


class ReadsItTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        z: Tensor = self.relu(y) + y
        return z


def net_of(block: nn.Module) -> AdaFilterNet:
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2))
    return convert(
        nn.Sequential(nn.Conv2d(3, 4, 1), block, head).double(), size=6, layers=r"1\.conv"
    )


def calls_of(net: nn.Module, kind: type[nn.Module]) -> int:
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1

    handles = [m.register_forward_hook(hook) for m in net.modules() if type(m) is kind]
    net(torch.randn(2, 3, 6, 6, dtype=torch.float64))
    for handle in handles:
        handle.remove()
    return count


def test_a_residual_and_a_relu_are_taken_over() -> None:
    assert calls_of(net_of(Block()), nn.ReLU) == 0


@pytest.mark.parametrize("kind", [ChoosesByTraining, ReadsItTwice])
def test_a_block_that_is_more_than_that_is_left_alone(kind: type[nn.Module]) -> None:
    assert calls_of(net_of(kind()), nn.ReLU) == 1


def test_a_relu_that_somebody_listens_to_is_left_alone() -> None:
    block = Block()
    block.relu.register_forward_hook(lambda *_: None)
    assert calls_of(net_of(block), nn.ReLU) == 1


def test_class_paths_and_state_stay() -> None:
    plain = torchvision.models.resnet18(weights=None)
    net = convert(copy.deepcopy(plain), size=32)
    block = net.backbone.get_submodule("layer2.0")
    assert isinstance(block, torchvision.models.resnet.BasicBlock)
    assert type(block).__name__ == "BasicBlock"
    again = copy.deepcopy(net)
    again.load_state_dict(net.state_dict())
    assert absorb(net.backbone) == 0  # nothing is left to take over


def test_a_pickle_is_rewritten_again() -> None:
    net = convert(torchvision.models.resnet18(weights=None), size=32).eval()
    again = pickle.loads(pickle.dumps(net))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), net(x))
    relus: list[nn.Module] = []
    for module in again.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, *_: relus.append(module))
    again(x)
    assert not relus  # taken over there too
    assert type(again.backbone).__name__ == "ResNet"


def test_the_gates_order_is_kept_where_a_downsample_follows() -> None:
    """In a block the last convolution runs before the downsample: so does its gate."""
    net = convert(torchvision.models.resnet18(weights=None), size=32)
    names = list(net.gated_layers)
    ran: list[str] = []
    for name, layer in net.gated_layers.items():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    net(torch.randn(1, 3, 32, 32))
    assert ran == names
    assert names.index("layer2.0.conv2") < names.index("layer2.0.downsample.0")


SLOWER = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("mobilenet_v2", "densenet121", "regnet_y_400mf")
]


@pytest.mark.parametrize("name", ["resnet18", *SLOWER])
def test_fused_training_is_that_of_plain_modules(name: str) -> None:
    torch.manual_seed(0)
    net = convert(getattr(torchvision.models, name)(weights=None).double(), size=64).train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(net)
    set_kernels(plain, "reference")
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64).to(memory_format=torch.channels_last)
    outputs = []
    for each in (net, plain):
        out = each(x)
        out.square().sum().backward()
        outputs.append(out.detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-8)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7 * scale + 1e-9)
