"""Reading files that may be damaged or half: what is good of them, and what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_object(path: Path, problems: list[str]) -> Row:
    """A file of one JSON object; empty where there is none or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return {}
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is damaged")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} is damaged")
        return {}
    return content


def number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number in a row, None if it holds none."""
    value = row.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(row: Mapping[str, Any], key: str) -> int | None:
    """Like :func:`number`, without what is behind the point."""
    value = number(row, key)
    return int(value) if value is not None else None


def text(row: Mapping[str, Any], key: str) -> str | None:
    """A text in a row that can be printed on one line, None if it holds none."""
    value = row.get(key)
    if not isinstance(value, str):
        return None
    return "".join(c if c.isprintable() else " " for c in value)


def changed(path: Path) -> str | None:
    """When a file was last changed (ISO, UTC), None if it is not there."""
    try:
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None
    return when.isoformat(timespec="seconds")
