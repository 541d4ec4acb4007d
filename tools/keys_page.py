"""Write docs/keys.md: every key of a recipe with its type, default, bounds and meaning.

All of it is read from the types of adafilter_dist/recipe/sections, which check recipes.

    python tools/keys_page.py
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections import base, engine, launch, output, training

PAGE = Path(__file__).resolve().parent.parent / "docs" / "keys.md"
HEAD = """\
# Every key of a recipe

This page is written by `python tools/keys_page.py` from the types that check recipes; a test fails
where the two differ. [recipes.md](recipes.md) says how a key is set, in a file or on the command
line. `adafilter train recipe=NAME --cfg` prints the values that a recipe comes to.

A duration is written like `90s`, `10min` or `1.5h`. `null` means none, or what the last column
says. Keys that change a run's numbers belong to its hash; [resuming.md](resuming.md) says what may
change when a run continues.
"""
# Types that take more than their Python type says.
_NAMED: dict[Any, str] = {
    base.check_duration: "duration",
    base._path: "path",
    base._absolute: "path",
    base._gates: "a gate from 0 to 1, or a list of them",
    base._expression: "regular expression",
    output._every: "steps, duration or `auto`",
    engine._hang: "duration, `auto` or `null`",
    training._together: "integer, 1 to 1,048,576, or `auto`",
    launch._check_time: "time, as in `4h`, `1-12:00:00`",
    typing.get_args(launch.OptionalDuration)[1].func: "duration; or `null`",
}
_PYTHON = {str: "text", int: "integer", float: "number", bool: "`true`, `false`", Any: "anything"}


def page() -> str:
    """The text of docs/keys.md."""
    parts = [HEAD, *_table("", "Of the whole recipe", Recipe, _plain_fields(Recipe))]
    for name, field in Recipe.model_fields.items():
        models = _models(field.annotation)
        if len(models) == 1:
            parts += _section(name, f"`{name}`", models[0])
        elif models:
            parts += _choices(name, field, models)
    return "\n".join(parts).rstrip() + "\n"


def _section(prefix: str, title: str, model: type[BaseModel], level: int = 2) -> Iterator[str]:
    """A model's own table, then those of the models in it."""
    yield from _table(f"{prefix}.", title, model, _plain_fields(model), level)
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield from _section(f"{prefix}.{name}", f"`{prefix}.{name}`", inner, 3)


def _choices(name: str, field: FieldInfo, models: Sequence[type[BaseModel]]) -> Iterator[str]:
    """A section that is one of several, told apart by its ``name``; what all have comes first."""
    default = type(field.get_default(call_default_factory=True))
    yield f"## `{name}`\n"
    names = ", ".join(f"`{_tag(model)}`" for model in models)
    yield f"`{name}=NAME` chooses one of {names}; default `{_tag(default)}`.\n"
    shared = models[-1].__mro__[1]  # what the methods, or the engines, have in common
    assert issubclass(shared, BaseModel)
    common = set(shared.model_fields)
    others = [model for model in models if not issubclass(model, shared)]
    who = f"All but `{_tag(others[0])}` have" if others else "All have"
    yield from _rows(f"{name}.", list(shared.model_fields.items()), f"{who}:")
    for model in models:
        left_out = {"name", *(common if issubclass(model, shared) else ())}
        own = [pair for pair in _plain_fields(model) if pair[0] not in left_out]
        yield from _table(f"{name}.", f"`{name}={_tag(model)}`", model, own, 3)
        for key, each in model.model_fields.items():
            for inner in _models(each.annotation):
                yield from _section(f"{name}.{key}", f"`{name}.{key}`", inner, 4)


def _table(
    prefix: str,
    title: str,
    model: type[BaseModel],
    fields: Sequence[tuple[str, FieldInfo]],
    level: int = 2,
) -> Iterator[str]:
    yield f"{'#' * level} {title}\n"
    yield from _rows(prefix, fields, inspect.getdoc(model) or "")


def _rows(prefix: str, fields: Sequence[tuple[str, FieldInfo]], above: str) -> Iterator[str]:
    yield _cell(above.partition("\n")[0]) + "\n"
    if not fields:
        return
    yield "| key | type | default | |\n|---|---|---|---|"
    for name, field in fields:
        default = "needed" if field.is_required() else f"`{_word(field.default)}`"
        kind = describe(field.annotation, field.metadata)
        yield f"| `{prefix}{name}` | {kind} | {default} | {_cell(field.description or '')} |"
    yield ""


def _plain_fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [
        (name, field) for name, field in model.model_fields.items() if not _models(field.annotation)
    ]


def _models(annotation: Any) -> list[type[BaseModel]]:
    parts = typing.get_args(annotation) or (annotation,)
    return [each for each in parts if inspect.isclass(each) and issubclass(each, BaseModel)]


def _tag(model: type[BaseModel]) -> str:
    return str(model.model_fields["name"].default)


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, with its bounds: ``number, 0 to 1``."""
    for each in metadata:
        if isinstance(each, AfterValidator | BeforeValidator) and each.func in _NAMED:
            return _NAMED[each.func]
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return describe(parts[0], [one for each in parts[1:] for one in _metadata(each)])
    if origin in (typing.Union, types.UnionType):
        kinds = [describe(part, metadata) for part in parts if part is not type(None)]
        return " or ".join(kinds) + "; or `null`" * (type(None) in parts)
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {describe(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} numbers, each {describe(parts[0]).removeprefix('number, ')}"
    if origin is dict:
        return f"mapping of names to {describe(parts[1])}"
    return ", ".join([_PYTHON[annotation], *_bounds(metadata)])


def _metadata(each: Any) -> list[Any]:
    return list(each.metadata) if isinstance(each, FieldInfo) else [each]


def _bounds(metadata: Sequence[Any]) -> list[str]:
    """``0 to 1``, ``above 0, at most 10000``; none where there are none."""
    low = high = ""
    closed = True
    for each in metadata:
        match each:
            case annotated_types.Ge(ge=value):
                low = _number(value)
            case annotated_types.Gt(gt=value):
                low, closed = f"above {_number(value)}", False
            case annotated_types.Le(le=value):
                high = _number(value)
            case annotated_types.Lt(lt=value):
                high, closed = f"below {_number(value)}", False
    if not low and not high:
        return []
    if closed:
        return [f"{low} to {high}"]
    low = low if low.startswith("above") else f"from {low}"
    high = high if high.startswith("below") else f"at most {high}"
    return [f"{low}, {high}"]


def _number(value: Any) -> str:
    return "2^63" if value == 2**63 else f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _word(value: Any) -> str:
    """A default as a recipe file has it, on one line."""
    assert value is not PydanticUndefined
    plain = [float(f"{one:.4g}") for one in value] if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip().strip("'")


def _cell(text: str) -> str:
    """Text that stands in a table as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page())
