from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adafilter_dist.models.gating.absorb_residual import absorb
from adafilter_dist.models.gating.convert import AdaFilterNet, convert, convert_pairs
from adafilter_dist.models.gating.find_pairs import find_pairs
from adafilter_dist.models.gating.gated_conv import set_kernels
from tests.models.networks import network


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


class _Relus(TorchFunctionMode):
    """Counts what nn.ReLU calls; a gated layer calls the method."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.relu
        return func(*args, **(kwargs or {}))


def relus_of(net: nn.Module) -> int:
    with _Relus() as relus:
        net(torch.randn(2, 3, 6, 6, dtype=next(net.parameters()).dtype))
    return relus.count


def test_a_residual_and_a_relu_are_taken_over() -> None:
    assert relus_of(net_of(Block())) == 0


@pytest.mark.parametrize("kind", [ChoosesByTraining, ReadsItTwice])
def test_a_block_that_is_more_than_that_is_left_alone(kind: type[nn.Module]) -> None:
    assert relus_of(net_of(kind())) == 1


def test_a_relu_that_somebody_listens_to_is_left_alone() -> None:
    block = Block()
    handle = block.relu.register_forward_hook(lambda *_: None)
    net = net_of(block)
    assert relus_of(net) == 1
    handle.remove()
    assert relus_of(net) == 1  # it was there when the network was converted


def test_a_relu_is_there_for_who_listens_later() -> None:
    net, heard = net_of(Block()), []
    relu = net.backbone.get_submodule("1.relu")
    handle = relu.register_forward_hook(lambda *_: heard.append(1))
    assert relus_of(net) == 1 and heard == [1]
    handle.remove()
    assert relus_of(net) == 0
    with torch.nn.modules.module.register_module_forward_hook(lambda m, *_: heard.append(m)):
        assert relus_of(net) == 1 and relu in heard


@pytest.mark.parametrize(
    ("name", "pairs", "taken"),
    [("resnet18", 20, 17), ("resnet50", 53, 49), ("densenet121", 59, 59)],
)
def test_as_many_layers_as_ever_take_it_over(name: str, pairs: int, taken: int) -> None:
    model = network(name, torch.float32)
    net = convert_pairs(model, find_pairs(model, torch.empty(2, 3, 32, 32)))
    took: list[bool] = []
    for layer in net.gated_layers.values():
        layer.register_forward_pre_hook(lambda *each: took.append(bool(each[2])), with_kwargs=True)
    net(torch.randn(2, 3, 32, 32))
    assert (len(took), sum(took)) == (pairs, taken)


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
    assert relus_of(again) == 0  # taken over there too
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
