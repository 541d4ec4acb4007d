"""TensorBoard and Weights & Biases: optional, each a sink of numbers by name and step."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from adafilter_dist.system import files


class Board(Protocol):
    """Where numbers can be looked at while a run goes on."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show each value at ``step``."""

    def close(self) -> None:
        """Write out what is buffered."""


class TensorBoard:
    """Event files under RUN/tensorboard. ImportError when tensorboard is not installed."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _leave_threads_quiet()
        # What an interrupted run wrote past its checkpoint is hidden, not shown twice.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _leave_threads_quiet() -> None:
    """Print no traceback of TensorBoard's own thread where the disk refuses.

    The error is raised once more where the next value is written, and told of there.
    """
    before = threading.excepthook
    if getattr(before, "leaves_quiet", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        name = type(args.thread).__name__
        if not (name == "_AsyncWriterThread" and isinstance(args.exc_value, OSError)):
            before(args)

    hook.leaves_quiet = True  # type: ignore[attr-defined]
    threading.excepthook = hook


class WeightsAndBiases:
    """A Weights & Biases run; the same one after a resume. ImportError when not installed.

    Offline unless WANDB_MODE says otherwise: training never opens the network by itself.
    ``wandb sync RUN/wandb/*-run-*`` uploads it later.
    """

    def __init__(self, run_dir: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project="adafilter-dist",
            id=_wandb_id(run_dir),
            name=f"{name}/{run_dir.name}",
            dir=str(run_dir),
            config=dict(config),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(run_dir: Path) -> str:
    path = run_dir / "wandb_id"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    fresh = uuid.uuid4().hex[:16]
    files.write_text(path, fresh + "\n")
    return fresh
