"""Compiled code kept between attempts: a run that comes back does not compile again.

It lies in the package's cache folder, not in the run's, so that all runs of a sweep share it.
Ranks of many nodes may write at once: inductor and Triton name each file by a hash of its contents
and rename it into place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from adafilter_dist.errors import UserError
from adafilter_dist.models.ops.native import processor
from adafilter_dist.recipe import Recipe
from adafilter_dist.system.cache_folder import cache_folder


def keep_compiled(recipe: Recipe, device: torch.device) -> list[str]:
    """Set where inductor and Triton keep what they compile, where the user has not; notices.

    Raises UserError where ``train.compile=true`` and there is no compiler.
    """
    if not recipe.train.compile and device.type != "cuda":
        return []
    if recipe.train.compile:
        _require_compiler(device)
    folder = cache_folder() / "compiled" / _machine(device)
    # Importing parts of torch sets its own default, for us and for whatever we start.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") not in (None, default_cache_dir(), str(folder)):
        return []  # Triton's files then go below it, by torch's own rule
    try:
        _try(folder)
    except (OSError, NotImplementedError) as error:
        return [
            f"compiled code is not kept between attempts: {folder}: {error}; "
            "TORCHINDUCTOR_CACHE_DIR or ADAFILTER_CACHE can name another place"
        ]
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return []


def _machine(device: torch.device) -> str:
    """A name for machines that can run each other's code: kind of device, and a hash of the rest.

    Code for the CPU is compiled for the very one, and nodes of a cluster may differ.
    """
    parts = [torch.__version__, platform.python_version(), processor()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    return f"{device.type}-{digest}"


def _try(folder: Path) -> None:
    """OSError unless files can be written and locked there, which some shared disks cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _require_compiler(device: torch.device) -> None:
    """UserError where what inductor or Triton starts is missing."""
    # A GPU's launchers are C, of Triton's choice; code for the CPU is C++, by one name only.
    variable, usual = ("CC", ["gcc", "clang"]) if device.type == "cuda" else ("CXX", ["g++"])
    named = os.environ.get(variable)
    wanted = [named] if named else usual
    if not any(shutil.which(name) for name in wanted):
        raise UserError(
            f"train.compile=true: compiling for the {device.type.upper()} needs a compiler, and "
            f"{' or '.join(wanted)} is not on PATH; install one (apt-get install g++), name one by "
            f"{variable}=PATH, or use train.compile=false"
        )
