"""Fuses the residual addition and the ReLU that follow a gated layer into the layer itself.

A block's forward is read as straight lines of calls (`forward_code`), one for each way through its
branches, and these lines are rewritten. The same block then gets a forward that runs the line whose
conditions hold; its class name, its paths and its state stay. If no line holds (an attribute was
changed, a hook was registered, the code cannot be read), the block's own forward runs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from adafilter_dist.models.gating.batchnorm import has_hooks
from adafilter_dist.models.gating.forward_code import Line, read_forward
from adafilter_dist.models.gating.forward_values import ADDS, KNOWN, RELUS


def absorb(model: nn.Module) -> int:
    """Fuse residual and ReLU into the gated layers before them; returns how many layers changed."""
    done: set[nn.Module] = set()
    for block in list(model.modules()):  # outer ones first: they look into small containers
        if _holds_gated(block):
            done |= _absorb_in(block)
    return len(done)


def _is_gated(module: nn.Module | None) -> bool:
    """Whether this layer takes `residual` and `relu` with its input."""
    return getattr(type(module), "takes_residual", False)


def _holds_gated(block: nn.Module) -> bool:
    inner = [block, *(child for child in block.children() if _is_container(child))]
    return any(_is_gated(child) for each in inner for child in each.children())


def _is_container(module: nn.Module) -> bool:
    """Whether this is a small Sequential around a gated layer (a downsample), read as its parts."""
    return (
        isinstance(module, nn.Sequential)
        and _is_sequence(module)
        and len(module) <= 3
        and not has_hooks(module)
        and any(_is_gated(child) for child in module)
    )


def _is_sequence(module: nn.Module) -> bool:
    """Whether this calls one child after the other, as nn.Sequential does or once did."""
    own = getattr(type(module), "original_class", type(module))
    return own.forward is nn.Sequential.forward and "forward" not in module.__dict__


def _absorb_in(block: nn.Module) -> set[nn.Module]:
    own = type(block)
    if "forward" in block.__dict__ or not _copies_as_usual(own):
        return set()
    modules = dict(block.named_modules())
    done: set[nn.Module] = set()
    rewritten: list[tuple[fx.Graph, str]] = []
    lines = read_forward(block, _is_container)
    for line in lines:
        rewriting = _Rewriting(line, modules)
        if layers := rewriting.run():
            done |= layers
            rewritten.append((line.graph, " and ".join(rewriting.conditions)))
    if done:
        _set_forward(block, rewritten, lines[0])
    return done


def _copies_as_usual(own: type[nn.Module]) -> bool:
    """Whether the class is copied and pickled by its state alone, so that a subclass can be too."""
    names = ("__reduce__", "__reduce_ex__", "__getstate__", "__deepcopy__", "__copy__")
    return all(getattr(own, name, None) is getattr(nn.Module, name, None) for name in names)


class _Rewriting:
    """Rewrites one line: what follows its gated layers is fused into them."""

    def __init__(self, line: Line, modules: dict[str, nn.Module]) -> None:
        self.line, self.modules = line, modules
        self.conditions = list(line.conditions)
        self.order = {node: place for place, node in enumerate(line.graph.nodes)}

    def run(self) -> set[nn.Module]:
        """Rewrite the line; returns the layers into which something was fused."""
        done: set[nn.Module] = set()
        for node in list(self.line.graph.nodes):
            layer = self._module(node)
            if _is_gated(layer) and self._absorb_epilogue(node):
                assert layer is not None
                done.add(layer)
        self.line.graph.lint()
        return done

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _absorb_epilogue(self, layer: fx.Node) -> bool:
        extra: dict[str, Any] = {}
        if len(layer.args) != 1 or layer.kwargs:
            return False
        last, passed = self._skip_identities(layer)
        reader = _only_reader(last)
        if reader is not None and _is_add(reader):
            others = [each for each in reader.args if each is not last]
            if len(others) == 1 and self._can_be_added(others[0], layer, reader, passed):
                extra["residual"] = others[0]
                passed.append(reader)
                last, more = self._skip_identities(reader)
                passed += more
                reader = _only_reader(last)
        if reader is not None and self._is_relu(reader):
            extra["relu"] = True
            passed.append(reader)
        if not extra:
            return False
        layer.kwargs = extra
        passed[-1].replace_all_uses_with(layer)
        for node in reversed(passed):
            self.line.graph.erase_node(node)
        # If the module is replaced, or hooks are added to it, the block's own forward runs.
        self.conditions.append(f"is_gated({self._expression(layer)})")
        for node in passed:
            if (module := self._module(node)) is not None:
                kind = "ReLU" if type(module) is nn.ReLU else "Identity"
                self.conditions.append(f"is_just({self._expression(node)}, {kind})")
        return True

    def _expression(self, node: fx.Node) -> str:
        return self.line.expression(str(node.target))

    def _can_be_added(
        self, other: Any, layer: fx.Node, add: fx.Node, passed: list[fx.Node]
    ) -> bool:
        """Whether `other` exists, unchanged, when the layer runs.

        Layers run in the gate's order, so the layer cannot wait for it. Any call between the layer
        and the sum could write into it.
        """
        if not isinstance(other, fx.Node) or self.order[other] > self.order[layer]:
            return False
        if other.op == "placeholder" and other.target not in self.line.tensors:
            return False
        between = range(self.order[layer] + 1, self.order[add])
        return all(node in passed for node, place in self.order.items() if place in between)

    def _skip_identities(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """The last of the nn.Identity calls that follow, such as a removed BatchNorm's."""
        passed: list[fx.Node] = []
        while (reader := _only_reader(node)) is not None:
            module = self._module(reader)
            if type(module) is not nn.Identity or not _is_just(module, nn.Identity):
                break
            passed.append(reader)
            node = reader
        return node, passed

    def _is_relu(self, node: fx.Node) -> bool:
        if (module := self._module(node)) is not None:
            return _is_just(module, nn.ReLU)
        if node.op == "call_function":
            return node.target in RELUS
        return node.op == "call_method" and node.target in ("relu", "relu_")


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_add(node: fx.Node) -> bool:
    adds = node.op == "call_function" and node.target in ADDS
    adds = adds or (node.op == "call_method" and node.target in ("add", "add_"))
    return adds and len(node.args) == 2 and not node.kwargs and node.args[0] is not node.args[1]


def _is_just(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether this is torch's own `kind`, with nothing attached to it."""
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    # Compiled code knows no hooks that come later.
    return torch.compiler.is_compiling() or not (has_hooks(module) or _has_any_global_hook())


def _keys(module: nn.Module) -> tuple[str, ...] | None:
    """The names in a Sequential that is walked through; None where it no longer is one."""
    if not _is_sequence(module):
        return None
    if not torch.compiler.is_compiling() and (has_hooks(module) or _has_any_global_hook()):
        return None
    return tuple(module._modules)


def _set_forward(block: nn.Module, lines: list[tuple[fx.Graph, str]], of: Line) -> None:
    """Give `block` a subclass whose forward chooses among the lines and the original forward."""
    own = type(block)
    names = ", ".join((of.block, *of.parameters))
    scope: dict[str, Any] = {
        "adafilter_own": own.forward,
        "is_gated": _is_gated,
        "is_just": _is_just,
        "keys": _keys,
        "known": KNOWN.__getitem__,
        "Tensor": Tensor,
        "ReLU": nn.ReLU,
        "Identity": nn.Identity,
    }
    text = [f"def forward({names}):"]
    for number, (graph, condition) in enumerate(lines):
        scope[f"adafilter_line_{number}"] = type(fx.GraphModule(block, graph)).forward
        text.append(f"    if {condition}:\n        return adafilter_line_{number}({names})")
    text.append(f"    return adafilter_own({names})\n")
    exec("\n".join(text), scope)
    forward = scope["forward"]
    forward.__defaults__ = getattr(own.forward, "__defaults__", None)
    members = {
        "forward": forward,
        "original_class": own,
        "__module__": own.__module__,
        "__reduce__": lambda self: (_rewritten_again, (own, self.__dict__)),
        "__deepcopy__": _deepcopy,
    }
    block.__class__ = type(own.__name__, (own,), members)


def _rewritten_again(own: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """Rewrite an unpickled block again: a pickle cannot hold a class that was made at run time."""
    block = own.__new__(own)
    block.__setstate__(state)
    _absorb_in(block)
    return block


def _deepcopy(block: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # Not by __reduce__: a copy runs the same lines, nothing need be read again.
    twin = type(block).__new__(type(block))
    memo[id(block)] = twin
    twin.__dict__.update(copy.deepcopy(block.__dict__, memo))
    return twin
