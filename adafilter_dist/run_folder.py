"""The run folder: where everything about one run lies, and status.json, its contract to others."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from adafilter_dist import __version__
from adafilter_dist.atomic import write_json, write_text
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.identity import differences, run_dir

State = Literal["queued", "running", "stopped", "finished", "failed"]
_HEARTBEAT_SECONDS = 5.0


class RunFolder:
    """One run on disk: recipe.yaml, environment.json, status.json and the rest beside them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._status: dict[str, Any] = {}
        self._written = 0.0

    def read_status(self) -> dict[str, Any]:
        """status.json as a dict, empty if there is none yet."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}  # a place that cannot be is refused by create()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / 'status.json'}: cannot be read: {error}") from None
        return status if isinstance(status, dict) else {}

    def create(self, recipe: Recipe, environment: dict[str, Any]) -> int:
        """Make the folder or enter an existing one; returns the attempt (1 for the first).

        Raises UserError when it holds a run of another recipe, naming what differs, or cannot be
        written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            known = self.path / "recipe.yaml"
            if known.exists():
                self._same_run(known, recipe)
            else:
                write_text(known, dump_recipe(recipe))
            write_json(self.path / "environment.json", environment)
        except OSError as error:
            raise UserError(
                f"run_dir={self.path}: cannot be written ({error.strerror}); "
                "choose another with run_dir=PATH"
            ) from None
        return int(self.read_status().get("attempt", 0)) + 1

    def _same_run(self, known: Path, recipe: Recipe) -> None:
        changed = differences(load_recipe([f"recipe={known}"]), recipe)
        if changed:
            raise UserError(
                f"{self.path} holds a run of another recipe; it differs in "
                + "; ".join(changed)
                + "; choose another run_dir, or resume=never"
            )

    def status(self, state: State, *, reason: str = "", **fields: Any) -> None:
        """Write status.json atomically, with a fresh heartbeat; fields are kept between calls."""
        self._status |= {"state": state, "reason": reason, "heartbeat": time.time(), **fields}
        write_json(self.path / "status.json", self._status)
        self._written = time.monotonic()

    def heartbeat(self, **fields: Any) -> None:
        """Refresh a running status, at most every few seconds."""
        if time.monotonic() - self._written > _HEARTBEAT_SECONDS:
            self.status("running", **fields)


def find_run(recipe: Recipe) -> RunFolder:
    """The folder this recipe's run lives in, by ``resume`` and ``run_dir``.

    auto: the folder of the run hash; never: a free folder beside it; a path: that run.
    """
    if recipe.resume not in ("auto", "never"):
        path = Path(recipe.resume).expanduser()
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"resume={path}: not a run folder (no recipe.yaml in it)")
        return RunFolder(path)
    path = run_dir(recipe).expanduser()
    if recipe.resume == "never":
        number, first = 1, path
        while path.exists():
            number += 1
            path = first.with_name(f"{first.name}-{number}")
    return RunFolder(path)


def describe_environment(recipe: Recipe, world_size: int, threads: int) -> dict[str, Any]:
    """What the bits of a run depend on beside its recipe."""
    cuda = torch.cuda.is_available() and recipe.engine.device != "cpu"
    return {
        "adafilter_dist": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "world_size": world_size,
        "threads": threads,
        "compile": recipe.train.compile,
    }


def started() -> dict[str, Any]:
    """Who runs this attempt, and since when (UTC)."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
