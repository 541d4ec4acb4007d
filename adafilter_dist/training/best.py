"""best/, the export of the best epoch: writes it, checks it, and repairs it from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from adafilter_dist.checkpoint.publish import folder_name
from adafilter_dist.checkpoint.store import Checkpoints, Loaded, Position
from adafilter_dist.distributed.lost_peer import from_rank0
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.methods.export import export_model, load, read_config, read_weights
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.system.sealed_files import DamagedError
from adafilter_dist.training.session import Session


def write_best(session: Session, run: RunFolder) -> None:
    """Export the model as it is evaluated now; collective. Raises OSError on the first rank."""
    with session.whole_model() as model, torch.no_grad():
        if session.world.is_rank0:
            run.ownership.check()
            export_model(
                run.files.best,
                replace(session.trainable, model=model),
                classes=session.prepared.classes,
                preprocess=session.preprocess,
            )


def best_damage(run: Path) -> str:
    """Why best/ cannot be used; empty if it can."""
    try:
        read_config(RunFiles(run).best)
        read_weights(RunFiles(run).best)
    except UserError as error:
        return str(error)
    return ""


def load_best(run: Path) -> nn.Module:
    """The model of best/; UserError with what to do where it cannot be used."""
    try:
        return load(RunFiles(run).best)[0]
    except UserError as error:
        raise UserError(f"{error}; to write it again: {resume_line(run)}") from None


def repair_best(
    session: Session,
    run: RunFolder,
    checkpoints: Checkpoints,
    loaded: Loaded,
    say: Callable[[str], None],
) -> Position:
    """If best/ is missing or damaged, write it again from its epoch's checkpoint; collective.

    The session holds the state of ``loaded`` before and after. If that checkpoint is no longer
    kept, the returned position has no best epoch, so that later epochs compete again, and ``say``
    gets the reason on rank 0.
    """
    position = loaded.position
    if position.best_epoch is None:
        return position
    step = (position.best_epoch + 1) * session.steps_per_epoch
    source_folder = checkpoints.folder / folder_name(step)

    def look() -> str | None:
        """The checkpoint to write best/ from; None if best/ is sound, "" if none is kept."""
        damage = best_damage(run.path)
        if not damage:
            return None
        try:
            if source_folder != loaded.folder:
                checkpoints.load(source_folder)
        except DamagedError:
            say(f"warning: {damage}. {_anew(session, position)}")
            return ""
        say(f"warning: {damage}. It is written again from {source_folder}")
        return str(source_folder)

    source = from_rank0(session.world, look)
    if source is None:
        return position
    if source:
        if source_folder != loaded.folder:
            session.load_full_state(checkpoints.load(source_folder).state)
        write_best(session, run)
        if source_folder != loaded.folder:
            session.load_full_state(loaded.state)
        return position
    ended = position.step == session.total_steps
    # At the end the last epoch is evaluated once more, and is the best.
    validated = min(position.validated, session.recipe.train.epochs - 1 if ended else 10**9)
    return replace(position, best_metric=None, best_epoch=None, validated=validated)


def _anew(session: Session, position: Position) -> str:
    assert position.best_epoch is not None
    top1 = "" if position.best_metric is None else f", top-1 {position.best_metric:.1%}"
    ended = position.step == session.total_steps
    what_next = "the last epoch is taken" if ended else "the best is sought anew from here on"
    return (
        f"The checkpoint of its epoch ({position.best_epoch + 1}{top1}) is no longer kept: "
        f"{what_next}"
    )
