"""Announces how an attempt starts and how it ends: events, status.json and console lines."""

from __future__ import annotations

from typing import Any, Literal

from adafilter_dist.checkpoint.store import Loaded
from adafilter_dist.data.loading.backend import SAME_PIXELS
from adafilter_dist.errors import resume_line
from adafilter_dist.metrics import Metrics
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.system.counted import counted
from adafilter_dist.system.files import write_json
from adafilter_dist.training.plan import AttemptPlan
from adafilter_dist.training.run_data import keep_run_data
from adafilter_dist.training.session import Session
from adafilter_dist.training.stop_policy import ended_before

Outcome = Literal["finished", "stopped"]


def announce_start(
    run: RunFolder,
    plan: AttemptPlan,
    session: Session,
    metrics: Metrics,
    loaded: Loaded | None,
    environment: dict[str, Any],
) -> None:
    """Announce the start on rank 0, after the state of ``loaded`` was taken over.

    A restart also says how the attempt before it ended, and how many steps are repeated.
    """
    world, recipe = session.world, plan.decision.recipe
    step = loaded.position.step if loaded else 0
    write_json(run.files.environment, environment)
    keep_run_data(run.path, session.prepared)
    lost = max(0, plan.last_step - (loaded.manifest["step"] if loaded else 0))
    attempt = run.ownership.attempt
    after = ended_before(run.path, attempt)
    metrics.event(
        "start",
        attempt=attempt,
        step=step,
        steps_lost=lost,
        **({"after": after} if after else {}),
        **environment,
    )
    run.status(
        "running",
        phase="starting",
        step=step,
        total_steps=session.total_steps,
        epoch=step // session.steps_per_epoch,
        epochs=recipe.train.epochs,
        world_size=world.world_size,
    )
    if plan.decision.changed and plan.before is not None:
        run.keep(recipe)
        changes = {key: list(pair) for key, pair in plan.decision.changes.items()}
        metrics.event("changed", changes=changes)
    for line in (*plan.decision.notices, *plan.notices, *session.notices, session.loader.notice):
        if line:
            metrics.say(line)
    metrics.say(
        f"{recipe.name}: {recipe.method.name} on {recipe.model.name}, "
        f"{counted(session.total_steps, 'step')} of {counted(recipe.train.global_batch, 'image')} "
        f"in {counted(recipe.train.epochs, 'epoch')}, "
        f"{world.world_size} x {world.device.type} ({world.threads} threads), "
        f"loader {session.loader.kind}, run {run.path}"
    )
    if session.engine.described:
        metrics.say(session.engine.described)
    if loaded is None:
        if lost:
            metrics.say(
                f"warning: there is no checkpoint in {run.checkpoints}: {counted(lost, 'step')} of "
                "before done again"
            )
        return
    repeated = f", {counted(lost, 'step')} done again" if lost else ""
    metrics.say(f"going on from step {step} ({loaded.folder}){repeated}")
    # The first checkpoints do not name their engine, nor how many micro-batches shared a forward.
    before = {"engine": "ddp", "micro_batches_per_forward": 1}
    before |= loaded.manifest.get("environment", {})
    changed = [k for k in environment if before.get(k) != environment[k]]
    if {before.get("loader"), environment["loader"]} <= SAME_PIXELS:
        changed = [k for k in changed if k != "loader"]
    if changed:
        changes_text = ", ".join(f"{k} {before.get(k)} -> {environment[k]}" for k in changed)
        metrics.say(f"continuing, not bit-exact: {changes_text} changed")


def announce_end(
    run: RunFolder, metrics: Metrics, outcome: Outcome, reason: str, step: int, kept: int
) -> None:
    """Announce on rank 0 how the attempt ended; ``kept`` is the newest checkpoint's step."""
    metrics.event(outcome, step=step, **({"reason": reason} if reason else {}))
    run.end(outcome, reason=reason, step=step)
    if outcome == "stopped":
        saved = "saved" if kept == step else f"NOT saved, the newest checkpoint is of step {kept}"
        metrics.say(
            f"stopped by {reason} at step {step}, {saved}; go on with: {resume_line(run.path)}"
        )
