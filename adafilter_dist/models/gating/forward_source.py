"""The source of a function as a syntax tree, where it is that of the code that runs."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import types
from collections.abc import Iterator
from typing import Any

from adafilter_dist.models.gating.forward_values import Unreadable


def signature_of(function: Any) -> tuple[list[str], dict[str, Any]]:
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


def statements_of(function: types.FunctionType) -> list[ast.stmt]:
    """The statements of a function; Unreadable unless the source is that of its very code."""
    code = function.__code__
    try:
        linecache.checkcache(code.co_filename)
        # Most sources are files; asking inspect for the module first takes a tenth of a second.
        lines = linecache.getlines(code.co_filename) or inspect.findsource(code)[0]
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
