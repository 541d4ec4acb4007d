"""Copies the package for a job, so that its code does not change before a requeue."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import adafilter_dist
from adafilter_dist.recipe.load import shipped_recipes
from adafilter_dist.system.files import fsync_folder, make_folder

# Not __pycache__: times are copied too, so Python takes what is compiled, and no rank waits for it.
_LEFT_OUT = shutil.ignore_patterns(".*")
_LEFT_BEHIND = 3600.0  # seconds after which no submission is still copying


def take_snapshot(place: Path) -> Path:
    """Copy package and recipes to ``place``, whole or not at all; what was there is replaced.

    Returns ``place``, which goes on PYTHONPATH.
    """
    make_folder(place.parent)
    package = Path(adafilter_dist.__file__).resolve().parent
    new = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    old = place.with_name(f".{place.name}.{os.getpid()}.old.tmp")
    for left in place.parent.glob(f".{place.name}.*.tmp"):
        if left in (new, old) or time.time() - left.stat().st_mtime > _LEFT_BEHIND:
            shutil.rmtree(left, ignore_errors=True)
    try:
        shutil.copytree(package, new / package.name, ignore=_LEFT_OUT)
        if not (new / package.name / "recipes").exists():
            for recipes in shipped_recipes():
                shutil.copytree(recipes, new / package.name / "recipes", ignore=_LEFT_OUT)
        with contextlib.suppress(FileNotFoundError):
            place.rename(old)
        new.rename(place)
        fsync_folder(place.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return place
