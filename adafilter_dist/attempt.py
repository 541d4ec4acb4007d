"""One attempt at a run: join the others, find the run, go on from its newest checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from rich.console import Console

from adafilter_dist import memory
from adafilter_dist.checkpoint import Checkpoints, Loaded, Position
from adafilter_dist.disk import require_space
from adafilter_dist.engine import World, join_world
from adafilter_dist.errors import UserError
from adafilter_dist.finish import finish, show_finished
from adafilter_dist.metrics import Metrics
from adafilter_dist.preemption import StopFlag, stop_on_signal
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.run_folder import RunFolder, describe_environment, find_run, started
from adafilter_dist.session import Session, build_session, frozen_names
from adafilter_dist.train import Trainer

STOPPED = 75
T = TypeVar("T")


def from_first(world: World, choose: Callable[[], T]) -> T:
    """What ``choose`` gives on rank 0, on every rank."""
    box: list[Any] = [choose() if world.first else None]
    dist.broadcast_object_list(box, src=0, device=world.device)
    choice: T = box[0]
    return choice


def run_attempt(recipe: Recipe, console: Console) -> int:
    """Train ``recipe`` from where its run stands; 0 finished, 75 stopped and resumable.

    Under torchrun a clean stop gives 0 too: its agent would restart or hide anything else.
    """
    with stop_on_signal() as stop, join_world(recipe) as world:
        path, done = from_first(world, lambda: _find(recipe))
        run = RunFolder(path)
        if done:
            if world.first:
                show_finished(run, console)
            return 0
        with _failures_noted(run, world):
            outcome = _train(recipe, run, world, stop, console)
    if outcome == "finished":
        return 0
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


def _find(recipe: Recipe) -> tuple[Path, bool]:
    run = find_run(recipe)
    return run.path, run.read_status().get("state") == "finished"


def _train(recipe: Recipe, run: RunFolder, world: World, stop: StopFlag, console: Console) -> str:
    session: Session | None = None
    metrics: Metrics | None = None
    environment = describe_environment(recipe, world.world_size, world.threads)
    attempt = 1
    if world.first:
        attempt = run.create(recipe, environment)
        run.status("running", attempt=attempt, **started())
    try:
        session = build_session(recipe, world)
        if world.first:
            _require_space(session, run)
        checkpoints = Checkpoints(
            run.path, keep=recipe.checkpoint.keep, frozen=frozen_names(session.engine.model)
        )
        loaded = _newest(session, checkpoints, console)
        position = loaded.position if loaded else Position()
        metrics = Metrics(
            run.path,
            recipe,
            console,
            rank=world.rank,
            total_steps=session.total_steps,
            step=position.step,
        )
        _say_start(metrics, session, run, attempt, loaded, environment)
        session.step.warm_up(session.preprocess.crop)
        about = {
            "run_hash": run_hash(recipe),
            "data_fingerprint": session.prepared.fingerprint,
            "environment": environment,
        }
        trainer = Trainer(session, run, checkpoints, metrics, stop, position, about)
        outcome = trainer.run()
        if outcome == "finished":
            finish(session, run, metrics, console)
        if world.first:
            _note_end(run, metrics, trainer, outcome, stop)
        return outcome
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise memory.explain(recipe, session, f"rank {world.rank} ({world.device})") from None
    finally:
        if metrics is not None:
            metrics.close()


def _require_space(session: Session, run: RunFolder) -> None:
    """Room for the checkpoints kept, one being written, the frozen copies and best/."""
    tensors = session.engine.model.state_dict().values()
    model = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    moments = 2 if session.recipe.optim.name == "adamw" else 1
    averaged = 1 if session.recipe.ema.decay else 0
    one = model * (1 + moments + averaged)
    needed = one * (session.recipe.checkpoint.keep + 1) + 3 * model
    have = sum(f.stat().st_size for f in (run.path / "checkpoints").rglob("*") if f.is_file())
    require_space(run.path, needed - have, "the run with its checkpoints", "run_dir")


def _newest(session: Session, checkpoints: Checkpoints, console: Console) -> Loaded | None:
    """Rank 0 picks and verifies; every rank takes over the state it chose."""
    world = session.world
    mine = checkpoints.newest(console.print) if world.first else None
    folder = from_first(world, lambda: mine.folder if mine else None)
    if folder is None:
        return None
    loaded = mine or checkpoints.load(folder)
    fingerprint = loaded.manifest.get("data_fingerprint")
    if fingerprint != session.prepared.fingerprint:
        raise UserError(
            f"the prepared data changed under the run: it began on {fingerprint}, found is "
            f"{session.prepared.fingerprint}; put the data back, or start with resume=never"
        )
    session.load_full_state(loaded.state)
    return loaded


def _say_start(
    metrics: Metrics,
    session: Session,
    run: RunFolder,
    attempt: int,
    loaded: Loaded | None,
    environment: dict[str, Any],
) -> None:
    world, recipe = session.world, session.recipe
    step = loaded.position.step if loaded else 0
    metrics.event("start", attempt=attempt, step=step, **environment)
    if session.loader.notice:
        metrics.say(session.loader.notice)
    metrics.say(
        f"{recipe.name}: {recipe.method.name} on {recipe.model.name}, {session.total_steps} steps "
        f"of {recipe.train.global_batch} images in {recipe.train.epochs} epochs, "
        f"{world.world_size} x {world.device.type} ({world.threads} threads), "
        f"loader {session.loader.kind}, run {run.path}"
    )
    if loaded is None:
        return
    metrics.say(f"going on from step {step} ({loaded.folder})")
    before = loaded.manifest.get("environment", {})
    changed = [k for k in environment if before.get(k) != environment[k]]
    if changed:
        said = ", ".join(f"{k} {before.get(k)} -> {environment[k]}" for k in changed)
        metrics.say(f"continuing, not bit-exact: {said} changed")


def _note_end(
    run: RunFolder, metrics: Metrics, trainer: Trainer, outcome: str, stop: StopFlag
) -> None:
    step = trainer.position.step
    if outcome == "finished":
        run.status("finished", step=step)
        metrics.event("finished", step=step)
        return
    reason = stop.reason or "asked on another rank"
    run.status("stopped", reason=reason, step=step)
    metrics.event("stopped", step=step, reason=reason)
    metrics.say(f"stopped by {reason} at step {step}, saved; go on with: {resume_line(run.path)}")


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return f"adafilter resume {path}"


@contextmanager
def _failures_noted(run: RunFolder, world: World) -> Iterator[None]:
    """status.json says failed and why, whatever ends the attempt."""
    try:
        yield
    except BaseException as error:
        known = run.read_status() if world.first else {}
        if world.first and run.path.is_dir() and known.get("state") == "running":
            line = str(error).splitlines()[0] if str(error) else ""
            kept = {k: v for k, v in known.items() if k not in ("state", "reason", "heartbeat")}
            run.status("failed", reason=f"{type(error).__name__}: {line}", **kept)
        raise
