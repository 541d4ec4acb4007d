"""A run in numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.run.attempts import Attempt
from adafilter_dist.run.files import RunFiles


@dataclass(frozen=True)
class CheckpointFolder:
    """A published checkpoint, not verified; ``size`` in bytes, frozen weights left out."""

    folder: str
    step: int
    size: int


@dataclass(frozen=True)
class Failure:
    """The last lines of the rank that failed first; None where it is not known which one."""

    rank: int | None
    host: str | None
    error: list[str]


@dataclass(frozen=True)
class RunStatus:
    """A run in numbers; None is for what is not known. ``epoch`` counts from 0.

    ``state``: as recorded (queued, running, stopped, finished, failed), or killed, stalled,
    cancelled, lost, unknown. ``alive``: whether its process is, None where that cannot be known
    from here. ``slurm``: the state of its ``job``, None where SLURM was not asked or does not know;
    ``starts_in``: seconds until SLURM expects to start it. ``val_top1`` is the best on the
    validation set, ``test_top1`` that of the model with it; ``metric`` names what ``value`` is.
    """

    run: str
    state: str
    reason: str
    alive: bool | None
    host: str | None
    nodes: list[str]
    job: str | None
    slurm: str | None
    starts_in: float | None
    phase: str | None
    step: int | None
    total_steps: int | None
    epoch: int | None
    epochs: int | None
    metric: str | None
    value: float | None
    val_top1: float | None
    test_top1: float | None
    images_per_second: float | None
    step_seconds: float | None
    world_size: int | None
    restarts: int
    steps_lost: int
    heartbeat_age: float | None
    failure: Failure | None
    resume: str | None
    problems: list[str]
    attempts: list[Attempt]
    checkpoints: list[CheckpointFolder]


def failed_at_once(run: RunStatus) -> bool:
    """Whether a run that was started by hand ended before its first step.

    Whoever started it has seen why. What was submitted ended where nobody looked.
    """
    nothing = not run.step and not run.checkpoints and run.value is None
    by_hand = run.job is None and not RunFiles(Path(run.run)).submitted.exists()
    return run.state in ("failed", "killed") and nothing and by_hand


def ago(seconds: float) -> str:
    """A span of time in two or three digits: ``8 s``, ``12 min``, ``3.5 h``, ``20 d``."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 and unit != "min" else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s"
