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
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

ADDS = {operator.add, operator.iadd, torch.add}
RELUS = {torch.relu, F.relu}
METHODS = {"add", "add_", "relu", "relu_", "flatten"}
# Functions that may stand in a line; what they compute depends on nothing but their arguments.
KNOWN = (*ADDS, *RELUS, torch.flatten, torch.cat)

_CONSTANTS = (bool, int, float, str)
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
_MOST_LINES, _DEEPEST = 16, 8
_MISSING = object()


class Unreadable(Exception):
    """The code does what is not read here."""


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
        return _expression(self.block, path)


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
        except _Ask as question:
            waiting += [{**assumed, question.about: answer} for answer in (True, False)]
        except Unreadable:
            pass  # this way is left to the block's own code
        waiting += reader.others()
    return lines


class _Ask(Exception):
    """A choice by something that is read both ways."""

    def __init__(self, about: str) -> None:
        super().__init__(about)
        self.about = about


@dataclass(frozen=True)
class _Part:
    """A module: the block itself at the path "", or one below it."""

    module: nn.Module
    path: str


@dataclass(frozen=True)
class _Method:
    """A function of the block's class, or of a class above the one that `owner` is."""

    function: types.FunctionType


@dataclass(frozen=True)
class _Super:
    """`super()` in a function of the class `owner`."""

    owner: type


@dataclass(frozen=True)
class _TensorMethod:
    node: fx.Node
    name: str


@dataclass
class _Frame:
    """A function that is being read: its own names, where the others are looked up."""

    function: types.FunctionType
    names: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Returned:
    value: Any


class _Reader:
    """Reads one line, by what is assumed of parameters ("tensor", "default", "sequence")."""

    def __init__(
        self, block: nn.Module, is_open: Callable[[nn.Module], bool], assumed: dict[str, Any]
    ) -> None:
        self.block, self.is_open, self.assumed = block, is_open, assumed
        self.graph = fx.Graph()
        self.conditions: dict[str, None] = {}
        self.kinds: dict[str, str] = {}
        self.parameters: dict[fx.Node, str] = {}
        self.optional: set[str] = set()
        self.asked: set[str] = set()
        self.name = "self"
        self.depth = 0

    def line(self) -> Line:
        forward = type(self.block).forward
        defaults: dict[str, Any] = {}
        if forward is nn.Sequential.forward:
            names = ["self", "input"]
        else:
            names, defaults = _signature(forward)
        self.name = names[0]
        values = [self._parameter(name, defaults.get(name, _MISSING)) for name in names[1:]]
        if forward is nn.Sequential.forward:
            result = self._through(_Part(self.block, ""), values, {})
        else:
            result = self._run(forward, [_Part(self.block, ""), *values], {})
        self.graph.output(_checked(result))
        tensors = frozenset(name for name, kind in self.kinds.items() if kind == "tensor")
        return Line(self.graph, tuple(self.conditions), self.name, tuple(names[1:]), tensors)

    def others(self) -> Iterator[dict[str, Any]]:
        """What else may be assumed of the parameters."""
        for name, kind in self.kinds.items():
            if name in self.optional:
                yield {**self.assumed, name: "tensor" if kind == "default" else "default"}
            elif name in self.asked and kind == "tensor":
                yield {**self.assumed, name: "sequence"}

    def _parameter(self, name: str, default: Any) -> Any:
        node = self.graph.placeholder(name)
        kind = self.assumed.get(name, "tensor" if default is _MISSING else "default")
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

    # -- functions and statements

    def _run(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        names, defaults = _signature(function)
        if self.depth == _DEEPEST or len(args) > len(names):
            raise Unreadable
        frame = _Frame(function, {**defaults, **dict(zip(names, args, strict=False))})
        if not kwargs.keys() <= set(names[len(args) :]):
            raise Unreadable
        frame.names |= kwargs
        if frame.names.keys() != set(names):
            raise Unreadable
        self.depth += 1
        returned = self._body(_code(function), frame)
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
        value = frame.function.__globals__.get(name, _MISSING)
        value = getattr(builtins, name, _MISSING) if value is _MISSING else value
        # A global that is a number or a flag may have another value next time.
        if isinstance(value, types.ModuleType | type) or _is_known(value):
            return value
        if value in (getattr, hasattr, isinstance):
            return value
        raise Unreadable

    def _attribute(self, of: Any, name: str) -> Any:
        if isinstance(of, fx.Node):
            if name in METHODS:
                return _TensorMethod(of, name)
        elif isinstance(of, types.ModuleType):
            value = getattr(of, name, None)
            if isinstance(value, types.ModuleType | type) or _is_known(value):
                return value
        elif isinstance(of, _Part):
            return self._attribute_of_part(of, name)
        elif isinstance(of, _Super):
            above = type(self.block).__mro__
            for each in above[above.index(of.owner) + 1 :]:
                if name in each.__dict__:
                    return self._method(each.__dict__[name])
        raise Unreadable

    def _attribute_of_part(self, part: _Part, name: str) -> Any:
        module, kind = part.module, type(part.module)
        if kind.__getattr__ is not nn.Module.__getattr__:
            raise Unreadable
        if kind.__getattribute__ is not object.__getattribute__:
            raise Unreadable
        path = f"{part.path}.{name}".lstrip(".")
        expression = _expression(self.name, path)
        on_class = inspect.getattr_static(kind, name, _MISSING)
        if name in module.__dict__ and not hasattr(on_class, "__set__"):
            if name == "training":
                return self._both_ways(expression)
            return self._constant(module.__dict__[name], expression)
        if module._modules.get(name) is not None:
            child = module._modules[name]
            assert child is not None
            return _Part(child, path)
        for state in (module._modules, module._parameters, module._buffers):
            if name in state:
                return self._constant(state[name], expression)
        if isinstance(on_class, types.FunctionType) and part.path == "":
            return self._method(on_class)
        return self._constant(on_class, expression)

    def _method(self, function: Any) -> _Method:
        if type(function) is not types.FunctionType or _is_known(function):
            raise Unreadable
        return _Method(function)

    def _both_ways(self, expression: str) -> bool:
        if expression not in self.assumed:
            raise _Ask(expression)
        answer: bool = self.assumed[expression]
        self._holds(f"{expression} is {answer}")
        return answer

    def _constant(self, value: Any, expression: str) -> Any:
        """`value`, which holds as long as the expression still gives it."""
        if value is None or type(value) is bool:
            self._holds(f"{expression} is {value}")
        elif _is_known(value):
            self._holds(f"{expression} is known({KNOWN.index(value)})")
        elif _is_constant(value):
            self._holds(f"{expression} == {value!r}")
        else:
            raise Unreadable
        return value

    def _truth(self, expression: ast.expr, frame: _Frame) -> bool:
        return self._truth_of(self._value(expression, frame))

    def _truth_of(self, value: Any) -> bool:
        if value is None or _is_constant(value):
            return bool(value)
        if isinstance(value, _Part) and value.path:
            kind = type(value.module)
            plain = getattr(kind, "__len__", None) in (None, nn.Sequential.__len__)
            if plain and not hasattr(kind, "__bool__"):
                truth = bool(value.module)
                self._holds(f"bool({_expression(self.name, value.path)}) is {truth}")
                return truth
        raise Unreadable

    def _one_of(self, wanted: bool, values: list[ast.expr], frame: _Frame) -> Any:
        """What `and` (wanted False) and `or` (wanted True) give."""
        value: Any = None
        for each in values:
            value = self._value(each, frame)
            if self._truth_of(value) is wanted:
                break
        return value

    def _compare(self, op: type, first: Any, second: Any) -> bool:
        if op not in _COMPARISONS:
            raise Unreadable
        if op in (ast.Is, ast.IsNot) and second is None and self._is_there(first):
            return op is ast.IsNot
        if not all(value is None or _is_constant(value) for value in (first, second)):
            raise Unreadable
        return bool(_COMPARISONS[op](first, second))

    def _is_there(self, value: Any) -> bool:
        """Whether this is surely not None."""
        if isinstance(value, _Part):
            self._holds(f"{_expression(self.name, value.path)} is not None")
            return True
        return isinstance(value, fx.Node) and value in self.parameters

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
            return self.graph.call_function(add, (_checked(first), _checked(second)))
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
        if isinstance(function, _Part):
            return self._through(function, args, kwargs)
        if isinstance(function, _Method):
            return self._run(function.function, [_Part(self.block, ""), *args], kwargs)
        if isinstance(function, _TensorMethod):
            values = tuple(_checked(each) for each in (function.node, *args))
            return self.graph.call_method(function.name, values, _checked(kwargs))
        if function is torch.jit.is_scripting and not args:
            return False
        if function in (getattr, hasattr, isinstance) and not kwargs:
            return self._ask(function, args)
        if function in KNOWN:
            if function is torch.cat and args and isinstance(args[0], fx.Node):
                self.asked.add(str(args[0].target))
            return self.graph.call_function(function, _checked(tuple(args)), _checked(kwargs))
        raise Unreadable

    def _super(self, frame: _Frame) -> _Super:
        # The class is the one whose dictionary holds the very function that is read.
        for owner in type(self.block).__mro__:
            if owner.__dict__.get(frame.function.__name__) is frame.function:
                return _Super(owner)
        raise Unreadable

    def _ask(self, function: Any, args: list[Any]) -> Any:
        if function is isinstance and len(args) == 2:
            return self._is_instance(*args)
        if not (len(args) >= 2 and isinstance(args[0], _Part) and isinstance(args[1], str)):
            raise Unreadable
        part, name = args[0], args[1]
        expression = _expression(self.name, part.path)
        there = hasattr(part.module, name)
        if not there or function is hasattr:
            self._holds(f"hasattr({expression}, {name!r}) is {there}")
        if function is hasattr:
            return there
        if not there and len(args) == 3:
            return args[2]
        return self._attribute(part, name)

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
        if value is None or _is_constant(value):
            return isinstance(value, every)
        raise Unreadable

    def _through(self, part: _Part, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The call of a module; a small Sequential is walked through."""
        whole = part.path != "" and not self.is_open(part.module)
        if whole:
            return self.graph.call_module(part.path, _checked(tuple(args)), _checked(kwargs))
        if len(args) != 1 or kwargs:
            raise Unreadable
        keys, of = tuple(part.module._modules), _expression(self.name, part.path)
        self._holds(f"keys({of}) == {keys!r}" if part.path else f"tuple({of}._modules) == {keys!r}")
        value = args[0]
        for name, child in part.module._modules.items():
            assert child is not None
            value = self._through(_Part(child, f"{part.path}.{name}".lstrip(".")), [value], {})
        return value


def _signature(function: Any) -> tuple[list[str], dict[str, Any]]:
    """Names of the parameters, and the defaults of the last of them."""
    if type(function) is not types.FunctionType:
        raise Unreadable
    code = function.__code__
    unusual = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR
    unusual |= inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    if code.co_flags & unusual or code.co_kwonlyargcount or not code.co_argcount:
        raise Unreadable
    names = list(code.co_varnames[: code.co_argcount])
    defaults = function.__defaults__ or ()
    return names, dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))


def _code(function: types.FunctionType) -> list[ast.stmt]:
    """The statements of a function; Unreadable unless the source is that of its very code."""
    code = function.__code__
    try:
        lines, _ = inspect.findsource(code)
        functions, codes = _file("".join(lines))
    except (OSError, SyntaxError, ValueError) as error:
        raise Unreadable from error
    node, again = functions.get(code.co_firstlineno), codes.get(code.co_firstlineno)
    # A file that was edited since it was imported is the source of something else.
    if node is None or node.decorator_list or again is None or not _same(again, code):
        raise Unreadable
    return node.body


@functools.lru_cache(maxsize=32)
def _file(text: str) -> tuple[dict[int, ast.FunctionDef], dict[int, types.CodeType]]:
    """All functions of a file and their compiled code, by the number of their first line."""
    tree = ast.parse(text)
    functions = {node.lineno: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    codes = _nested(compile(tree, "<source>", "exec", dont_inherit=True))
    return functions, {code.co_firstlineno: code for code in codes if code.co_name != "<lambda>"}


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _nested(constant)


def _same(first: types.CodeType, second: types.CodeType) -> bool:
    def content(code: types.CodeType) -> list[Any]:
        plain = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
        return [code.co_name, code.co_code, code.co_names, code.co_varnames, plain]

    return content(first) == content(second)


def _is_known(value: Any) -> bool:
    return isinstance(value, Callable) and any(  # type: ignore[arg-type]
        value is each for each in (*KNOWN, torch.jit.is_scripting)
    )


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return type(value) is tuple and all(_is_constant(each) for each in value)
    return type(value) in _CONSTANTS and (type(value) is not float or math.isfinite(value))


def _checked(value: Any) -> Any:
    """`value` as an argument in a graph; Unreadable for what cannot stand in one."""
    if isinstance(value, tuple | list):
        return type(value)(_checked(each) for each in value)
    if isinstance(value, dict):
        return {key: _checked(each) for key, each in value.items()}
    if value is None or isinstance(value, fx.Node) or _is_constant(value):
        return value
    raise Unreadable


def _expression(block: str, path: str) -> str:
    expression = block
    for name in path.split(".") if path else ():
        usual = name.isidentifier()
        expression = f"{expression}.{name}" if usual else f"getattr({expression}, {name!r})"
    return expression
