"""What a network computes, layer by layer, as shapes: collected by one forward with hooks.

The forward runs on the meta device, so that it costs nothing, whatever the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ADDITIONS = ("add", "add_")
# What the hooks below count already, and what moves no data.
_COUNTED = ("convolution", "native_batch_norm", "addmm", "mm", "view", "detach")


@dataclass(frozen=True)
class Conv:
    """One convolution of a batch. `trained_input`: whether a gradient flows on from it."""

    name: str
    batch: int
    c_in: int
    c_out: int
    input_pixels: int
    output_pixels: int
    kernel: int  # taps: 9 for 3x3
    groups: int
    trained_input: bool
    gated: bool

    @property
    def macs(self) -> int:
        """Multiplications with their additions; at the borders those with zeros count too."""
        taps = self.kernel * self.c_in // self.groups
        return self.batch * self.output_pixels * self.c_out * taps

    @property
    def inputs(self) -> int:
        """Elements of the input."""
        return self.batch * self.c_in * self.input_pixels

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        return self.batch * self.c_out * self.output_pixels

    @property
    def weights(self) -> int:
        """Elements of the filters."""
        return self.c_out * self.kernel * self.c_in // self.groups


@dataclass(frozen=True)
class Linear:
    """A fully connected layer of a batch."""

    batch: int
    c_in: int
    c_out: int

    @property
    def macs(self) -> int:
        """Multiplications with their additions."""
        return self.batch * self.c_in * self.c_out


@dataclass
class Shapes:
    """All that counts of one forward.

    `norms`: elements of each BatchNorm that stands behind no gated convolution. `residuals`:
    elements of each addition of two feature maps. `others`: elements (read, written) of what is no
    activation: pooling, concatenation, scaling. `parameters`: elements that are trained.
    """

    convs: list[Conv] = field(default_factory=list)
    norms: list[int] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    residuals: list[int] = field(default_factory=list)
    others: list[tuple[int, int]] = field(default_factory=list)
    parameters: int = 0

    @property
    def macs(self) -> int:
        """Of convolutions and fully connected layers, for the whole batch."""
        return sum(conv.macs for conv in self.convs) + sum(one.macs for one in self.linears)


def shapes_of(
    net: nn.Module, batch: int, size: int, gated: Collection[tuple[str, str]] = ()
) -> Shapes:
    """Those of a plain network for images (batch, 3, size, size); it stays as it is.

    `gated` names the pairs (convolution, BatchNorm) that AdaFilter gates.
    """
    twin = copy.deepcopy(net).to("meta").eval()
    shapes = Shapes(parameters=sum(p.numel() for p in twin.parameters() if p.requires_grad))
    convs, norms = {conv for conv, _ in gated}, {norm for _, norm in gated}
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(_conv_hook(shapes, name, name in convs))
        elif isinstance(module, nn.BatchNorm2d) and name not in norms:
            module.register_forward_hook(
                lambda _, inputs, __: shapes.norms.append(inputs[0].numel())
            )
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda module, inputs, _: shapes.linears.append(
                    Linear(
                        inputs[0].numel() // module.in_features,
                        module.in_features,
                        module.out_features,
                    )
                )
            )
    with _Others(shapes):
        twin(torch.empty(batch, 3, size, size, device="meta"))
    return shapes


def _conv_hook(shapes: Shapes, name: str, gated: bool) -> Any:
    def hook(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        shapes.convs.append(
            Conv(
                name=name,
                batch=x.shape[0],
                c_in=module.in_channels,
                c_out=module.out_channels,
                input_pixels=x.shape[2] * x.shape[3],
                output_pixels=output.shape[2] * output.shape[3],
                kernel=module.kernel_size[0] * module.kernel_size[1],
                groups=module.groups,
                trained_input=x.requires_grad,
                gated=gated,
            )
        )

    return hook


class _Others(TorchDispatchMode):
    """Notes additions of feature maps and what else reads and writes them.

    A function of one feature map with an output of its shape is an activation: it is computed where
    its input is written, and costs nothing.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _COUNTED:
            return result
        maps = [leaf for leaf in tree_leaves(args) if _is_map(leaf)]
        out = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
        if not maps or out is None:
            return result
        same = [leaf for leaf in maps if leaf.shape == out.shape]
        if name in _ADDITIONS and len(same) == 2:
            self.shapes.residuals.append(out.numel())
        elif len(maps) > 1 or out.shape != maps[0].shape:
            self.shapes.others.append((sum(leaf.numel() for leaf in maps), out.numel()))
        return result


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
