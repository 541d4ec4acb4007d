"""Site files: ``launch=@NAME`` takes the keys of ``launch:`` from NAME.yaml."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from adafilter_dist.errors import UserError, nearest


def config_folder() -> Path:
    """Where the user's own site files lie: $XDG_CONFIG_HOME/adafilter or ~/.config/adafilter."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "adafilter"


def find_site(name: str, recipes: Iterable[Path]) -> Path:
    """The user's NAME.yaml, else ``launch/NAME.yaml`` in one of the folders of recipes.

    Raises UserError when there is none, naming those there are.
    """
    folders = [config_folder(), *(folder / "launch" for folder in recipes)]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"launch=@{name}: no site file {folders[0] / name}.yaml, nor launch/{name}.yaml beside the "
        f"recipes{nearest(name, names)}; there are: {', '.join(names) or 'none'}"
    )
