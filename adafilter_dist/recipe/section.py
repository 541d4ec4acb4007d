"""What all sections of a recipe are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h|hours?)\s*$")
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "hours": 3600}


def seconds(text: str) -> float:
    """Seconds in a duration such as ``"90s"``, ``"10min"`` or ``"1.5h"``; ValueError otherwise."""
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration; write it like '90s', '10min' or '1.5h'")
    return float(match[1]) * _SECONDS[match[2]]


def check_duration(value: Any) -> Any:
    """``value`` if it is a duration longer than 0 s; ValueError otherwise."""
    if not seconds(str(value)):
        raise ValueError("must be longer than 0 s")
    return value


Duration = Annotated[str, BeforeValidator(check_duration)]
# Absolute from the start, so that a run can be resumed from another folder.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are fixed once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
