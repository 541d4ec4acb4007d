"""The choices that the code of a forward makes, and the conditions under which it makes them."""

from __future__ import annotations

import ast
import inspect
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from adafilter_dist.models.gating.forward_values import (
    KNOWN,
    MISSING,
    Method,
    Part,
    Unreadable,
    expression_of,
    is_constant,
    is_known,
)

_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Question(Exception):
    """A branch whose condition is unknown: both ways are read."""

    def __init__(self, about: str) -> None:
        super().__init__(about)
        self.about = about


class Choices:
    """Decides the branches in a block's code, and notes under which conditions.

    `assumed` has the kinds of parameters ("tensor", "default", "sequence") and the answers to
    questions that are read both ways.
    """

    def __init__(self, block: nn.Module, assumed: dict[str, Any]) -> None:
        self.block, self.assumed = block, assumed
        self.graph = fx.Graph()
        self.conditions: dict[str, None] = {}
        self.kinds: dict[str, str] = {}
        self.parameters: dict[fx.Node, str] = {}
        self.optional: set[str] = set()
        self.asked: set[str] = set()
        self.name = "self"

    def others(self) -> Iterator[dict[str, Any]]:
        """What else may be assumed of the parameters."""
        for name, kind in self.kinds.items():
            if name in self.optional:
                yield {**self.assumed, name: "tensor" if kind == "default" else "default"}
            elif name in self.asked and kind == "tensor":
                yield {**self.assumed, name: "sequence"}

    def _parameter(self, name: str, default: Any) -> Any:
        node = self.graph.placeholder(name)
        kind = self.assumed.get(name, "tensor" if default is MISSING else "default")
        self.kinds[name] = kind
        if default is None:
            self.optional.add(name)
        if kind == "default":
            return self._constant(default, name)
        self.parameters[node] = kind
        self._holds(f"isinstance({name}, {'Tensor' if kind == 'tensor' else '(list, tuple)'})")
        return node

    def _holds(self, condition: str) -> None:
        self.conditions[condition] = None

    def _attribute_of_part(self, part: Part, name: str) -> Any:
        module, kind = part.module, type(part.module)
        if kind.__getattr__ is not nn.Module.__getattr__:
            raise Unreadable
        if kind.__getattribute__ is not object.__getattribute__:
            raise Unreadable
        path = f"{part.path}.{name}".lstrip(".")
        expression = expression_of(self.name, path)
        on_class = inspect.getattr_static(kind, name, MISSING)
        if name in module.__dict__ and not hasattr(on_class, "__set__"):
            if name == "training":
                return self._both_ways(expression)
            return self._constant(module.__dict__[name], expression)
        if module._modules.get(name) is not None:
            child = module._modules[name]
            assert child is not None
            return Part(child, path)
        for state in (module._modules, module._parameters, module._buffers):
            if name in state:
                return self._constant(state[name], expression)
        if isinstance(on_class, types.FunctionType) and part.path == "":
            return self._method(on_class)
        return self._constant(on_class, expression)

    def _method(self, function: Any) -> Method:
        if type(function) is not types.FunctionType or is_known(function):
            raise Unreadable
        return Method(function)

    def _both_ways(self, expression: str) -> bool:
        if expression not in self.assumed:
            raise Question(expression)
        answer: bool = self.assumed[expression]
        self._holds(f"{expression} is {answer}")
        return answer

    def _constant(self, value: Any, expression: str) -> Any:
        """`value`, which holds as long as the expression still gives it."""
        if value is None or type(value) is bool:
            self._holds(f"{expression} is {value}")
        elif is_known(value):
            self._holds(f"{expression} is known({KNOWN.index(value)})")
        elif is_constant(value):
            self._holds(f"{expression} == {value!r}")
        else:
            raise Unreadable
        return value

    def _truth_of(self, value: Any) -> bool:
        if value is None or is_constant(value):
            return bool(value)
        if isinstance(value, Part) and value.path:
            kind = type(value.module)
            plain = getattr(kind, "__len__", None) in (None, nn.Sequential.__len__)
            if plain and not hasattr(kind, "__bool__"):
                truth = bool(value.module)
                self._holds(f"bool({expression_of(self.name, value.path)}) is {truth}")
                return truth
        raise Unreadable

    def _compare(self, op: type, first: Any, second: Any) -> bool:
        if op not in _COMPARISONS:
            raise Unreadable
        if op in (ast.Is, ast.IsNot) and second is None and self._is_there(first):
            return op is ast.IsNot
        if not all(value is None or is_constant(value) for value in (first, second)):
            raise Unreadable
        return bool(_COMPARISONS[op](first, second))

    def _is_there(self, value: Any) -> bool:
        """Whether this is surely not None."""
        if isinstance(value, Part):
            self._holds(f"{expression_of(self.name, value.path)} is not None")
            return True
        return isinstance(value, fx.Node) and value in self.parameters

    def _ask(self, function: Any, args: list[Any]) -> Any:
        if function is isinstance and len(args) == 2:
            return self._is_instance(*args)
        if not (len(args) >= 2 and isinstance(args[0], Part) and isinstance(args[1], str)):
            raise Unreadable
        part, name = args[0], args[1]
        expression = expression_of(self.name, part.path)
        there = hasattr(part.module, name)
        if not there or function is hasattr:
            self._holds(f"hasattr({expression}, {name!r}) is {there}")
        if function is hasattr:
            return there
        if not there and len(args) == 3:
            return args[2]
        return self._attribute_of_part(part, name)

    def _is_instance(self, value: Any, kinds: Any) -> bool:
        every = kinds if isinstance(kinds, tuple) else (kinds,)
        if not all(isinstance(kind, type) for kind in every):
            raise Unreadable
        if isinstance(value, fx.Node) and value in self.parameters:
            self.asked.add(str(value.target))
            if self.parameters[value] == "tensor":
                return issubclass(Tensor, every)
            if set(every) & {list, tuple} and not {list, tuple} <= set(every):
                raise Unreadable
            return bool({list, tuple} & set(every))
        if value is None or is_constant(value):
            return isinstance(value, every)
        raise Unreadable
