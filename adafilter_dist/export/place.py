"""The folder that an export is written to, which nothing else may have."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.errors import UserError, printable
from adafilter_dist.methods.programs import FILES
from adafilter_dist.run.files import CLASS_GATES, RunFiles
from adafilter_dist.system.json_files import read_object

NAMES = ("config.json", "README.md", "model.safetensors", *FILES.values())
_OF_EXPORTS = {"format", "version", "classes"}
"""In the config.json of each."""


def require_place(out: Path) -> None:
    """UserError where ``out`` is there and is no export, or is the best model of a run."""
    if not out.exists():
        return
    place = out.resolve()
    if RunFiles(place.parent).recipe.is_file() and RunFiles(place.parent).best == place:
        raise UserError(f"--out {printable(out)}: the best model of a run; name another folder")
    if not _is_export(out):
        raise UserError(
            f"--out {printable(out)}: there already, and no export; name another folder"
        )


def _is_export(folder: Path) -> bool:
    """Whether all in it is what exports are made of; other models have a config.json, too."""
    if not folder.is_dir():
        return False
    known, programs = {*NAMES, "compacting.json", CLASS_GATES}, tuple(FILES.values())
    names = [file.name for file in folder.iterdir()]
    if not all(name in known or name.startswith(programs) for name in names):
        return False
    return not names or read_object(folder / "config.json", []).keys() >= _OF_EXPORTS
