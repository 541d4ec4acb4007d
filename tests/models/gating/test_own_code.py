"""Blocks with Python code of their own compute after conversion what they computed before it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.inference.selected_conv import for_inference
from tests.models.networks import randomise

FLAG = False


class Block(nn.Module):
    """Two pairs and a residual; those below do more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.noise = Noise()
        self.flag = False
        self.repeats = 1
        self.calls = 0
        self.scale: float | None = None
        self.aside: nn.Module | None = None

    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.randn_like(x)


class NoiseInTraining(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.training:
            out = self.noise(out)
        return self.relu(out + x)


class OtherInTraining(Block):
    def forward(self, x: Tensor) -> Any:
        if not self.training:
            return Block.forward(self, x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out + x


class OptionalResidual(Block):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            residual = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += residual
        return self.relu(out)


class AnyArguments(Block):
    def forward(self, x: Tensor, *more: Tensor, scale: float = 1.0, **named: Any) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        for each in (*more, *named.values()):
            out = out + each
        return self.relu(out + x * scale)


class ByShape(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if x.shape[2] > 6:
            out = -out
        return self.relu(out + x)


class ByFlag(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.bn1(self.conv1(x))
        if self.flag:
            return self.relu(self.bn2(self.conv2(-out)))
        return self.relu(self.bn2(self.conv2(self.relu(out))) + x)


class AddsANumber(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return out if self.scale is None else out + self.scale


class ByModule(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.aside is not None:
            x = self.aside(x)
        return self.relu(out + x)


class ByGlobal(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(-out if FLAG else out)) + x)


class ByGradients(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if torch.is_grad_enabled():
            out = -out
        return self.relu(out + x)


class Dropout(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = F.dropout(out, 0.5, training=self.training)
        return self.relu(self.bn2(self.conv2(out)) + x)


class StochasticDepth(Block):
    def forward(self, x: Tensor) -> Any:
        if self.training and torch.rand(1).item() < 0.5:
            return x
        return Block.forward(self, x)


class PythonChance(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        if self.training and random.random() < 0.5:
            out = out * np.random.rand()
        return self.relu(self.bn2(self.conv2(out)) + x)


class Counts(Block):
    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.calls % 2 else -x))


class Loops(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        for _ in range(self.repeats):
            out = out + x
        return self.relu(out)


class LoopsUntil(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        while float(out.detach().abs().max()) > 1:
            out = out / 2
        return self.relu(out + x)


class Raises(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        if self.flag:
            raise ValueError("a block's own words")
        return self.relu(self.bn2(self.conv2(out)) + x)


class Checkpointed(Block):
    def forward(self, x: Tensor) -> Any:
        out = checkpoint(self.inner, x, use_reentrant=False)
        return self.relu(self.bn2(self.conv2(out)) + x)

    def inner(self, x: Tensor) -> Any:
        return self.relu(self.bn1(self.conv1(x)))


class ByDecorator(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class WritesInPlace(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        x = x.add(x)
        out2 = self.bn1(self.conv1(x)) if self.flag else out
        F.relu(x, inplace=True)
        return self.relu(out2 + x)


class WritesIntoTheResidual(Block):
    def forward(self, x: Tensor) -> Any:
        residual = torch.relu(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        residual.add_(x)
        return self.relu(out + residual)


class ByProperty(Block):
    @property
    def reads_more(self) -> bool:
        return self.calls > 0

    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + x) if self.reads_more else out


class Remembers(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        self.last = self.bn2(self.conv2(out))
        return self.relu(self.last + x)


def with_own_forward() -> Block:
    block = Block()
    block.forward = lambda x: 2 * Block.forward(block, x)  # type: ignore[method-assign]
    return block


class Net(nn.Module):
    def __init__(self, block: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = block
        self.call = call
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.call(self.block, self.stem(x))
        if isinstance(y, dict):
            y = y["out"]
        y = y[0] if isinstance(y, tuple) else y
        return self.fc(y.mean((2, 3)))


class GivesATuple(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x), out


class GivesADict(Block):
    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        return {"out": self.relu(self.bn2(self.conv2(out)) + x), "inner": out}


def plainly(block: nn.Module, x: Tensor) -> Any:
    return block(x)


def set_value(**values: Any) -> Callable[[nn.Module], None]:
    def change(block: nn.Module) -> None:
        for name, value in values.items():
            setattr(block, name, value)

    return change


def listen(path: str, pre: bool = False) -> Callable[[nn.Module], None]:
    def change(block: nn.Module) -> None:
        part = block.get_submodule(path)
        if pre:
            part.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        else:
            part.register_forward_hook(lambda module, args, output: 2 * output)

    return change


def outputs(net: nn.Module, training: bool, size: int = 6) -> Tensor:
    """Logits with BatchNorms by their running statistics and the same random numbers each time."""
    net.train(training)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    out: Tensor = net(x)
    return out.detach()


def converted(
    block: Block, call: Callable[[nn.Module, Tensor], Any] = plainly, training: bool = False
) -> tuple[Net, AdaFilterNet]:
    source = Net(block, call)
    randomise(source.double()).train(training)
    twin = copy.deepcopy(source)
    twin.block.__dict__.pop("forward", None)
    if "forward" in block.__dict__:
        twin.block.forward = lambda x: 2 * Block.forward(twin.block, x)  # type: ignore
    net = convert(source, size=6)
    # Draws fall on elements as they lie in memory, and kernels lay them otherwise.
    set_kernels(net, "reference")
    return twin, net


def agree(source: nn.Module, net: nn.Module) -> None:
    for training in (False, True, False):
        for size in (6, 8):
            ours, theirs = outputs(net, training, size), outputs(source, training, size)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def nothing(block: nn.Module) -> None:
    pass


CASES: list[tuple[Callable[[], Block], Callable[[nn.Module], None]]] = [
    (Block, nothing),
    (NoiseInTraining, nothing),
    (OtherInTraining, nothing),
    (OptionalResidual, nothing),
    (AnyArguments, nothing),
    (ByShape, nothing),
    (ByFlag, set_value(flag=True)),
    (AddsANumber, set_value(scale=2.0)),
    (ByModule, set_value(aside=nn.Conv2d(4, 4, 1).double())),
    (ByModule, set_value(relu=nn.GELU())),
    (ByGradients, nothing),
    (Dropout, nothing),
    (StochasticDepth, nothing),
    (PythonChance, nothing),
    (Counts, nothing),
    (Loops, set_value(repeats=3)),
    (LoopsUntil, nothing),
    (Checkpointed, nothing),
    (ByDecorator, nothing),
    (WritesInPlace, nothing),
    (WritesIntoTheResidual, nothing),
    (ByProperty, set_value(calls=1)),
    (Remembers, nothing),
    (GivesATuple, nothing),
    (GivesADict, nothing),
    (with_own_forward, nothing),
    (Block, listen("relu")),
    (Block, listen("relu", pre=True)),
    (Block, listen("bn2")),
    (Block, listen("")),
    (Block, listen("", pre=True)),
    (Block, set_value(forward=lambda x: -x)),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "change"), CASES)
def test_a_block_computes_what_it_did(
    kind: Callable[[], Block], change: Callable[[nn.Module], None], training: bool
) -> None:
    source, net = converted(kind(), training=training)
    agree(source, net)
    change(source.block)
    change(net.backbone.get_submodule("block"))
    agree(source, net)
    if kind is not with_own_forward:  # its function holds the block that it was made for
        for module in net.modules():
            module.__dict__.pop("last", None)
        agree(source, copy.deepcopy(net))
        for module in net.modules():
            module.__dict__.pop("last", None)
        fast = for_inference(net)
        torch.testing.assert_close(
            outputs(fast, False), outputs(source, False), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (OptionalResidual, lambda block, x: block(x, -x)),
        (OptionalResidual, lambda block, x: block(residual=None, x=x)),
        (OptionalResidual, lambda block, x: block(x, residual=0.5)),
        (AnyArguments, lambda block, x: block(x, x, -x, scale=2.0, more=x)),
    ],
)
def test_arguments_reach_a_block_in_every_form(kind: Callable[[], Block], call: Any) -> None:
    source, net = converted(kind())
    for each in (source, net.backbone):
        each.call = call  # type: ignore[assignment]
    agree(source, net)


def test_a_global_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source, net = converted(ByGlobal())
    agree(source, net)
    monkeypatch.setitem(globals(), "FLAG", True)
    agree(source, net)


def test_what_a_block_raises_and_counts_is_its_own() -> None:
    source, net = converted(Raises())
    agree(source, net)
    net.backbone.get_submodule("block").flag = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="a block's own words"):
        outputs(net, training=True)
    _, net = converted(Counts())
    assert net.backbone.get_submodule("block").calls == 0


def test_a_network_that_cannot_be_copied_is_converted() -> None:
    source = Net(Remembers(), plainly)
    randomise(source.double()).eval()
    twin = copy.deepcopy(source)
    before = source(torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert before.requires_grad  # now a block holds what copy.deepcopy refuses
    net = convert(source, size=6)
    set_kernels(net, "reference")
    agree(twin, net)
