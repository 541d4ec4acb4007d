"""Reads the code of a block's forward as straight lines of calls, each with when it holds.

Running a forward with stand-ins for tensors, as torch.fx does, freezes every choice that its Python
code makes. Here the code is not run but read: assignments, calls, sums, and choices by attributes,
by the mode and by arguments that may be left out. What a choice was made by becomes a condition of
the line. Code that does anything else (loops, counters, random numbers, shapes, global variables)
is not followed.
"""

from __future__ import annotations

import ast
import builtins
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from adafilter_dist.models.gating.forward_choices import Choices, Question
from adafilter_dist.models.gating.forward_source import signature_of, statements_of
from adafilter_dist.models.gating.forward_values import (
    KNOWN,
    METHODS,
    MISSING,
    Method,
    Part,
    Super,
    TensorMethod,
    Unreadable,
    checked,
    expression_of,
    is_known,
)

_MOST_LINES, _DEEPEST = 16, 8


@dataclass(frozen=True)
class Line:
    """One way through a forward.

    `graph` takes all parameters but the block itself; its modules are paths below the block.
    `conditions` are Python expressions of the parameters; `known(i)` in them is `KNOWN[i]`.
    `block` is what the code calls the block itself; `tensors` are the parameters that are tensors.
    """

    graph: fx.Graph
    conditions: tuple[str, ...]
    block: str
    parameters: tuple[str, ...]
    tensors: frozenset[str]

    def expression(self, path: str) -> str:
        """The module at `path`, as Python."""
        return expression_of(self.block, path)


def read_forward(block: nn.Module, is_open: Callable[[nn.Module], bool]) -> list[Line]:
    """All lines of the forward of `block`; none where its code is more than lines.

    Modules are called as a whole, but for small Sequentials that `is_open` names.
    """
    lines: list[Line] = []
    waiting: list[dict[str, Any]] = [{}]
    known: list[dict[str, Any]] = []
    while waiting and len(known) < _MOST_LINES:
        assumed = waiting.pop(0)
        if assumed in known:
            continue
        known.append(assumed)
        reader = _Reader(block, is_open, assumed)
        try:
            lines.append(reader.line())
        except Question as question:
            waiting += [{**assumed, question.about: answer} for answer in (True, False)]
        except Unreadable:
            pass  # this way is left to the block's own code
        waiting += reader.others()
    return lines


@dataclass
class _Frame:
    """A function that is being read: its local names, and where other names are looked up."""

    function: types.FunctionType
    names: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Returned:
    value: Any


class _Reader(Choices):
    """Reads one line, under given assumptions."""

    def __init__(
        self, block: nn.Module, is_open: Callable[[nn.Module], bool], assumed: dict[str, Any]
    ) -> None:
        super().__init__(block, assumed)
        self.is_open = is_open
        self.depth = 0

    def line(self) -> Line:
        forward = type(self.block).forward
        defaults: dict[str, Any] = {}
        if forward is nn.Sequential.forward:
            names = ["self", "input"]
        else:
            names, defaults = signature_of(forward)
        self.name = names[0]
        values = [self._parameter(name, defaults.get(name, MISSING)) for name in names[1:]]
        if forward is nn.Sequential.forward:
            result = self._through(Part(self.block, ""), values, {})
        else:
            result = self._run(forward, [Part(self.block, ""), *values], {})
        self.graph.output(checked(result))
        tensors = frozenset(name for name, kind in self.kinds.items() if kind == "tensor")
        return Line(self.graph, tuple(self.conditions), self.name, tuple(names[1:]), tensors)

    # -- functions and statements

    def _run(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        names, defaults = signature_of(function)
        if self.depth == _DEEPEST or len(args) > len(names):
            raise Unreadable
        frame = _Frame(function, {**defaults, **dict(zip(names, args, strict=False))})
        if not kwargs.keys() <= set(names[len(args) :]):
            raise Unreadable
        frame.names |= kwargs
        if frame.names.keys() != set(names):
            raise Unreadable
        self.depth += 1
        returned = self._body(statements_of(function), frame)
        self.depth -= 1
        return None if returned is None else returned.value

    def _body(self, statements: list[ast.stmt], frame: _Frame) -> _Returned | None:
        for statement in statements:
            returned = self._statement(statement, frame)
            if returned is not None:
                return returned
        return None

    def _statement(self, statement: ast.stmt, frame: _Frame) -> _Returned | None:
        match statement:
            case ast.Return(value=None):
                return _Returned(None)
            case ast.Return(value=ast.expr() as value):
                return _Returned(self._value(value, frame))
            case ast.If(test=test, body=body, orelse=orelse):
                return self._body(body if self._truth(test, frame) else orelse, frame)
            case (
                ast.Assign(targets=[target], value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
            ):
                self._assign(target, self._value(value, frame), frame)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=ast.Add(), value=value):
                before = self._name(name, frame)
                self._assign(
                    target, self._sum(operator.iadd, before, self._value(value, frame)), frame
                )
            case ast.Expr(value=value):
                self._value(value, frame)
            case ast.Pass():
                pass
            case _:
                raise Unreadable(ast.dump(statement)[:80])
        return None

    def _assign(self, target: ast.expr, value: Any, frame: _Frame) -> None:
        match target:
            case ast.Name(id=name):
                frame.names[name] = value
            case ast.Tuple(elts=targets) if isinstance(value, tuple):
                if len(targets) != len(value):
                    raise Unreadable
                for each, part in zip(targets, value, strict=True):
                    self._assign(each, part, frame)
            case _:
                raise Unreadable

    # -- expressions

    def _value(self, expression: ast.expr, frame: _Frame) -> Any:
        match expression:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._name(name, frame)
            case ast.Tuple(elts=parts):
                return tuple(self._value(part, frame) for part in parts)
            case ast.List(elts=parts):
                return [self._value(part, frame) for part in parts]
            case ast.Attribute(value=of, attr=name):
                return self._attribute(self._value(of, frame), name)
            case ast.Call():
                return self._call(expression, frame)
            case ast.Subscript(value=of, slice=ast.Constant(value=int(place))):
                return self._item(self._value(of, frame), place)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first = self._value(left, frame)
                return self._sum(operator.add, first, self._value(right, frame))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._value(body if self._truth(test, frame) else orelse, frame)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._truth(operand, frame)
            case ast.BoolOp(op=op, values=values):
                return self._one_of(isinstance(op, ast.Or), values, frame)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                first = self._value(left, frame)
                return self._compare(type(op), first, self._value(right, frame))
            case _:
                raise Unreadable(ast.dump(expression)[:80])

    def _name(self, name: str, frame: _Frame) -> Any:
        if name in frame.names:
            return frame.names[name]
        code = frame.function.__code__
        if name in code.co_varnames or name in code.co_freevars or name in code.co_cellvars:
            raise Unreadable
        value = frame.function.__globals__.get(name, MISSING)
        value = getattr(builtins, name, MISSING) if value is MISSING else value
        # A global that is a number or a flag may have another value next time.
        if isinstance(value, types.ModuleType | type) or is_known(value):
            return value
        if value in (getattr, hasattr, isinstance):
            return value
        raise Unreadable

    def _attribute(self, of: Any, name: str) -> Any:
        if isinstance(of, fx.Node):
            if name in METHODS:
                return TensorMethod(of, name)
        elif isinstance(of, types.ModuleType):
            value = getattr(of, name, None)
            if isinstance(value, types.ModuleType | type) or is_known(value):
                return value
        elif isinstance(of, Part):
            return self._attribute_of_part(of, name)
        elif isinstance(of, Super):
            above = type(self.block).__mro__
            for each in above[above.index(of.owner) + 1 :]:
                if name in each.__dict__:
                    return self._method(each.__dict__[name])
        raise Unreadable

    def _truth(self, expression: ast.expr, frame: _Frame) -> bool:
        return self._truth_of(self._value(expression, frame))

    def _one_of(self, wanted: bool, values: list[ast.expr], frame: _Frame) -> Any:
        """What `and` (wanted False) and `or` (wanted True) give."""
        value: Any = None
        for each in values:
            value = self._value(each, frame)
            if self._truth_of(value) is wanted:
                break
        return value

    def _item(self, of: Any, place: int) -> Any:
        if isinstance(of, fx.Node) and of in self.parameters:
            self.asked.add(str(of.target))
            if self.parameters[of] == "sequence":
                return self.graph.call_function(operator.getitem, (of, place))
        elif isinstance(of, tuple | list) and place < len(of):
            return of[place]
        raise Unreadable

    def _sum(self, add: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
        if isinstance(first, fx.Node) or isinstance(second, fx.Node):
            return self.graph.call_function(add, (checked(first), checked(second)))
        raise Unreadable

    # -- calls

    def _call(self, call: ast.Call, frame: _Frame) -> Any:
        if isinstance(call.func, ast.Name) and call.func.id == "super" and not call.args:
            return self._super(frame)
        function = self._value(call.func, frame)
        args = [self._value(each, frame) for each in call.args]
        kwargs = {str(each.arg): self._value(each.value, frame) for each in call.keywords}
        if "None" in kwargs:  # **kwargs
            raise Unreadable
        if isinstance(function, Part):
            return self._through(function, args, kwargs)
        if isinstance(function, Method):
            return self._run(function.function, [Part(self.block, ""), *args], kwargs)
        if isinstance(function, TensorMethod):
            values = tuple(checked(each) for each in (function.node, *args))
            return self.graph.call_method(function.name, values, checked(kwargs))
        if function is torch.jit.is_scripting and not args:
            return False
        if function in (getattr, hasattr, isinstance) and not kwargs:
            return self._ask(function, args)
        if function in KNOWN:
            if function is torch.cat and args and isinstance(args[0], fx.Node):
                self.asked.add(str(args[0].target))
            return self.graph.call_function(function, checked(tuple(args)), checked(kwargs))
        raise Unreadable

    def _super(self, frame: _Frame) -> Super:
        # The class is the one whose dictionary holds the very function that is read.
        for owner in type(self.block).__mro__:
            if owner.__dict__.get(frame.function.__name__) is frame.function:
                return Super(owner)
        raise Unreadable

    def _through(self, part: Part, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The call of a module; a small Sequential is walked through."""
        whole = part.path != "" and not self.is_open(part.module)
        if whole:
            return self.graph.call_module(part.path, checked(tuple(args)), checked(kwargs))
        if len(args) != 1 or kwargs:
            raise Unreadable
        keys, of = tuple(part.module._modules), expression_of(self.name, part.path)
        self._holds(f"keys({of}) == {keys!r}" if part.path else f"tuple({of}._modules) == {keys!r}")
        value = args[0]
        for name, child in part.module._modules.items():
            assert child is not None
            value = self._through(Part(child, f"{part.path}.{name}".lstrip(".")), [value], {})
        return value
