"""What stands directly behind a gated layer, a residual and a ReLU, becomes part of its pass.

A block's own forward is traced with its modules as leaves, rewritten and given back to the very
same block: its class, its paths and its state stay. Where anything else than plain calls stands in
it, a choice by `self.training` above all, which tracing would freeze, the block is left alone.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from adafilter_dist.models.gated import GatedConvBN

_ADDS = {operator.add, operator.iadd, torch.add}
_RELUS = {torch.relu, F.relu}
_HARMLESS = {*_ADDS, *_RELUS, torch.flatten, torch.cat}
_METHODS = {"add", "add_", "relu", "relu_", "flatten"}


def absorb(model: nn.Module) -> int:
    """Let gated layers add the residual and apply the ReLU behind them; how many took over one.

    Call it before hooks are attached: what is absorbed is no longer called.
    """
    done: set[GatedConvBN] = set()
    for block in list(model.modules()):  # outer ones first: they look into small containers
        if _holds_gated(block):
            done |= _absorb_in(block)
    return len(done)


def _holds_gated(block: nn.Module) -> bool:
    inner = [block, *(child for child in block.children() if _is_container(child))]
    return any(isinstance(child, GatedConvBN) for each in inner for child in each.children())


def _is_container(module: nn.Module) -> bool:
    """A small Sequential around a gated layer (a downsample), which its block sees through."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and len(module) <= 3
        and not _hooked(module)
        and any(isinstance(child, GatedConvBN) for child in module)
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_container(m)


def _absorb_in(block: nn.Module) -> set[GatedConvBN]:
    try:
        graph = _Tracer().trace(block)
    except Exception:  # whatever a block's code does that cannot be traced
        return set()
    modules = dict(block.named_modules())
    if not all(_is_plain_call(node) for node in graph.nodes):
        return set()
    order = {node: place for place, node in enumerate(graph.nodes)}
    done: set[GatedConvBN] = set()
    for node in list(graph.nodes):
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, GatedConvBN) and _absorb_behind(graph, node, modules, order):
            done.add(layer)
    if done:
        graph.lint()
        _take_over(block, fx.GraphModule(block, graph))
    return done


def _is_plain_call(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _HARMLESS
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op in ("placeholder", "call_module", "output")


def _absorb_behind(
    graph: fx.Graph, layer: fx.Node, modules: dict[str, nn.Module], order: dict[fx.Node, int]
) -> bool:
    extra: dict[str, Any] = {}
    last, passed = _skip_identities(layer, modules)
    reader = _only_reader(last)
    if reader is not None and _is_add(reader):
        others = [each for each in reader.args if each is not last]
        # Layers run in the gate's order: only what is there by then can be added.
        if len(others) == 1 and isinstance(others[0], fx.Node) and order[others[0]] < order[layer]:
            extra["residual"] = others[0]
            passed.append(reader)
            last, more = _skip_identities(reader, modules)
            passed += more
            reader = _only_reader(last)
    if reader is not None and _is_relu(reader, modules):
        extra["relu"] = True
        passed.append(reader)
    if not extra:
        return False
    layer.kwargs = {**layer.kwargs, **extra}
    passed[-1].replace_all_uses_with(layer)
    for node in reversed(passed):
        graph.erase_node(node)
    return True


def _skip_identities(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, list[fx.Node]]:
    """The node behind those that hand on what they get (a BatchNorm that went into its layer)."""
    passed: list[fx.Node] = []
    while (reader := _only_reader(node)) is not None and reader.op == "call_module":
        module = modules[str(reader.target)]
        if type(module) is not nn.Identity or _hooked(module):
            break
        passed.append(reader)
        node = reader
    return node, passed


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_add(node: fx.Node) -> bool:
    adds = node.op == "call_function" and node.target in _ADDS
    adds = adds or (node.op == "call_method" and node.target in ("add", "add_"))
    return adds and len(node.args) == 2 and not node.kwargs and node.args[0] is not node.args[1]


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and not _hooked(module)
    if node.op == "call_function":
        return node.target in _RELUS
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _take_over(block: nn.Module, rewritten: fx.GraphModule) -> None:
    """`block` gets a class like its own, with the rewritten forward."""
    own = type(block)
    members = {
        "forward": type(rewritten).forward,
        "__module__": own.__module__,
        "__reduce__": lambda self: (_rewritten_again, (own, self.__dict__)),
        "__deepcopy__": _deepcopy,
    }
    block.__class__ = type(own.__name__, (own,), members)


def _rewritten_again(own: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """A block from a pickle, which cannot hold a class that was made here."""
    block = own.__new__(own)
    block.__setstate__(state)
    _absorb_in(block)
    return block


def _deepcopy(block: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # Not by __reduce__: what stands in for the layers of a copy (for_inference) is not traced.
    twin = type(block).__new__(type(block))
    memo[id(block)] = twin
    twin.__dict__.update(copy.deepcopy(block.__dict__, memo))
    return twin
