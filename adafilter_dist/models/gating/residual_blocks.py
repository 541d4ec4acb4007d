"""Finds the residual blocks of a network: a branch with convolutions, added to a shortcut."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, nn.Conv2d | nn.modules.batchnorm._BatchNorm)
        return leaf or super().is_leaf_module(m, module_qualified_name)


def find_residual_blocks(model: nn.Module) -> list[str]:
    """Paths of the blocks in order of registration, none inside another.

    A block's code is read by torch.fx. Its output is a sum, perhaps with functions of one input
    behind it, such as ReLU: of its input, or of one convolution of it (a projection), and of a
    branch with more convolutions.
    """
    return list(_blocks(model, ""))


def _blocks(module: nn.Module, above: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{above}{name}"
        if not isinstance(child, nn.Sequential | nn.ModuleList) and _is_residual(child):
            yield path
        else:
            yield from _blocks(child, f"{path}.")


def _is_residual(module: nn.Module) -> bool:
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return False
    try:
        graph = _Tracer().trace(module)
    except Exception:  # code that symbolic tracing cannot follow raises anything
        return False
    convs = {name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
    (output,) = (node for node in graph.nodes if node.op == "output")
    end = _alone(output)
    while end is not None and end.target not in _ADDS:
        end = _alone(end)
    if end is None or len(end.all_input_nodes) != 2:
        return False
    one, other = end.all_input_nodes
    return any(
        0 <= _convs_of_shortcut(a, convs) <= 1
        and len(_convs_before(b, convs)) > _convs_of_shortcut(a, convs)
        for a, b in ((one, other), (other, one))
    )


def _alone(node: fx.Node) -> fx.Node | None:
    """The only input of a node; None where it has none or several."""
    inputs = node.all_input_nodes
    return inputs[0] if len(inputs) == 1 else None


def _convs_of_shortcut(node: fx.Node, convs: set[str]) -> int:
    """Convolutions in a straight line from the block's input to here; -1 if there is none."""
    count = 0
    here: fx.Node | None = node
    while here is not None and here.op != "placeholder":
        count += here.op == "call_module" and here.target in convs
        here = _alone(here)
    return -1 if here is None else count


def _convs_before(node: fx.Node, convs: set[str]) -> set[str]:
    targets: set[str] = set()
    left, seen = [node], {node}
    while left:
        here = left.pop()
        if here.op == "call_module" and here.target in convs:
            targets.add(str(here.target))
        left += [each for each in here.all_input_nodes if each not in seen]
        seen.update(here.all_input_nodes)
    return targets
