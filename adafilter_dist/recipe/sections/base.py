"""What all sections of a recipe are made of: strict types, and numbers within bounds."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adafilter_dist.recipe.scalars import Integer, Real, plain

_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|sec|min|m|h|hours?)\s*")
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "hours": 3600}
_LONGEST = 365 * 24 * 3600
# What file systems take: bytes of a name, and of a path.
_LONGEST_NAME = 255
_LONGEST_PATH = 4095


def seconds(text: str) -> float:
    """Seconds in a duration such as ``"90s"``, ``"10min"`` or ``"1.5h"``; ValueError otherwise."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration; write it like '90s', '10min' or '1.5h'")
    return float(match[1]) * _SECONDS[match[2]]


def check_duration(value: Any) -> Any:
    """``value`` if it is a duration from above 0 s to a year; ValueError otherwise."""
    if not 0 < (length := seconds(str(value))) <= _LONGEST:
        raise ValueError("must be at most a year" if length else "must be longer than 0 s")
    return value


def _path(value: Any) -> Path:
    """A path as a file system would take it; ValueError otherwise."""
    if not isinstance(value, str | Path) or value == "":
        raise ValueError("must be a path")
    if len(str(value).encode(errors="surrogateescape")) > _LONGEST_PATH or any(
        len(part.encode(errors="surrogateescape")) > _LONGEST_NAME for part in Path(value).parts
    ):
        raise ValueError(
            f"must be a path of at most {_LONGEST_PATH} bytes, and {_LONGEST_NAME} a name"
        )
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and the name of nobody on this machine") from None


def _absolute(value: Any) -> Path:
    return _path(value).absolute()


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return value


def _gates(value: Any) -> float | list[float]:
    # One validator for both kinds, so that a mistake is one line.
    gates = value if isinstance(value, list) else [value]
    numbers = [
        gate for gate in gates if isinstance(gate, int | float) and not isinstance(gate, bool)
    ]
    if not gates or len(numbers) < len(gates) or not all(0 <= gate <= 1 for gate in numbers):
        raise ValueError(
            "must be a gate from 0 to 1, or one for each group of consecutive layers, as in [1, 0]"
        )
    return [float(gate) for gate in gates] if isinstance(value, list) else float(value)


Expression = Annotated[str, AfterValidator(_expression)]
Duration = Annotated[str, BeforeValidator(check_duration)]
# ~ is spelled out; AbsolutePath from the start, so that a run can be resumed from another folder.
AnyPath = Annotated[Path, BeforeValidator(_path)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e4)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e4)]
# A gate for each domain, or one for each group of consecutive layers.
DomainGates = dict[str, Annotated[float | list[float], BeforeValidator(_gates)]]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Batch = Annotated[int, Field(ge=1, le=1 << 20)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Threads = Annotated[int, Field(ge=1, le=4096)]


class Section(BaseModel):
    """Base of all sections: unknown keys and other types are errors, values stay as loaded."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _fit_numbers(cls, data: Any) -> Any:
        """Numbers as they were written where a key takes a text and no such number."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            key: _fitting(value, set(_kinds(fields[key].annotation))) if key in fields else value
            for key, value in data.items()
        }


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types of values that a field takes, through lists, mappings, unions and choices."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        yield from (type(choice) for choice in parts)
    elif parts:
        for part in parts:
            yield from _kinds(part)
    else:
        yield annotation


def _fitting(value: Any, kinds: set[Any]) -> Any:
    if any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds):
        return value  # a section fits its own
    if isinstance(value, list):
        return [_fitting(inner, kinds) for inner in value]
    if isinstance(value, dict):
        return {key: _fitting(inner, kinds) for key, inner in value.items()}
    if not isinstance(value, Integer | Real):
        return value
    takes_text = bool(kinds & {str, Path}) and Any not in kinds
    number = plain(value)
    if isinstance(value, Integer) and kinds & {int, float}:
        # launch.environment={A: 010} means what stands there.
        return value.written if takes_text and str(number) != value.written else number
    return value.written if takes_text and float not in kinds else number
