"""Reads a JSON file of another tool's settings, as strictly as a recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from adafilter_dist.recipe.yaml_loader import DEEPEST, MOST_BYTES


def read_json_object(name: str) -> dict[str, Any]:
    """The object in a JSON file; ValueError for a file that is none, or no recipe could hold."""
    try:
        path = Path(name).expanduser()
        if path.exists() and not path.is_file():
            raise ValueError("cannot be read: not a regular file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    except RuntimeError:
        raise ValueError("begins with ~ and the name of nobody on this machine") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MB, which no settings are")
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError('must hold a JSON object, e.g. {"zero_optimization": {"stage": 2}}')
    require_plain(value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key} stands there twice; keep one of them")
        content[key] = value
    return content


def require_plain(value: Any, depth: int = 0) -> None:
    """ValueError for what YAML and JSON files cannot both hold: inf, NaN, very deep nesting."""
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, dict):
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        require_plain(inner, depth + 1)
