"""What to say of a folder that should be a run and is none: it may be the folder above."""

from __future__ import annotations

from pathlib import Path

_SHOWN = 3


def no_run_in(folder: Path, *, or_export: bool = False) -> str:
    """A line, with the newest runs one or two folders below; ``or_export``: that would do too."""
    wrong = (
        "neither a run (recipe.yaml) nor an export (config.json)"
        if or_export
        else "not a run folder (no recipe.yaml in it)"
    )
    runs = _runs_below(folder)
    if not runs:
        return f"{folder}: {wrong}"
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    return f"{folder}: {wrong}; runs in it: {', '.join(map(str, runs[:_SHOWN]))}{more}"


def _runs_below(folder: Path) -> list[Path]:
    """The newest first."""
    try:
        recipes = [*folder.glob("*/recipe.yaml"), *folder.glob("*/*/recipe.yaml")]
        return [path.parent for path in sorted(recipes, key=_age)]
    except OSError:
        return []


def _age(recipe: Path) -> float:
    return -recipe.stat().st_mtime
