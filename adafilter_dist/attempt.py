"""One attempt at a run: join the others, claim the run, go on from its newest checkpoint."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from adafilter_dist import memory
from adafilter_dist.atomic import write_json
from adafilter_dist.checkpoint.files import DamagedError
from adafilter_dist.checkpoint.saver import Saver
from adafilter_dist.checkpoint.store import Checkpoints, Loaded, Position
from adafilter_dist.disk import require_space
from adafilter_dist.engine import World, join_world
from adafilter_dist.engine.peers import RankError, from_first, lost_peer
from adafilter_dist.errors import UserError
from adafilter_dist.finish import finish, show_finished
from adafilter_dist.metrics import Metrics
from adafilter_dist.plan import Plan, make_plan
from adafilter_dist.preemption import StopFlag, stop_on_signal
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.changes import require_end, translate_step
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.run_folder import RunFolder, describe_environment, started
from adafilter_dist.saving import Saving
from adafilter_dist.session import Session, build_session, frozen_names
from adafilter_dist.train import Trainer

STOPPED = 75
# What a disk says that is full, read-only, gone or broken.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EIO, errno.ESTALE}
Outcome = Literal["finished", "stopped"]


def run_attempt(recipe: Recipe, console: Console, *, allow_mismatch: Collection[str] = ()) -> int:
    """Train ``recipe`` from where its run stands; 0 finished, 75 stopped and resumable.

    ``allow_mismatch`` names keys in which it may differ from the run's although they change the
    numbers. Under torchrun a clean stop gives 0 too: its agent would restart or hide anything else.
    """
    with stop_on_signal() as stop, join_world(recipe) as world:
        plan = from_first(world, lambda: make_plan(recipe, allow_mismatch))

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        run = RunFolder(plan.path, say)
        if plan.done:
            if world.first:
                show_finished(run, console)
            return 0
        from_first(world, lambda: run.enter(plan.verdict.recipe))
        with _failures_noted(run, world):
            outcome = _Attempt(plan, run, world, stop, console, allow_mismatch).train()
    if outcome == "finished":
        return 0
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


class _Attempt:
    """What the steps of an attempt share."""

    def __init__(
        self,
        plan: Plan,
        run: RunFolder,
        world: World,
        stop: StopFlag,
        console: Console,
        allow: Collection[str],
    ) -> None:
        self._plan = plan
        self._recipe = plan.verdict.recipe
        self._run = run
        self._world = world
        self._stop = stop
        self._console = console
        self._data_may_differ = any(key.partition(".")[0] == "data" for key in allow)

    def train(self) -> Outcome:
        """Build, load, train to the end or a stop, and note how it ended."""
        session: Session | None = None
        metrics: Metrics | None = None
        saver: Saver | None = None
        run, world, recipe = self._run, self._world, self._recipe
        if world.first:
            saver = Saver(run.ownership, keep=recipe.checkpoint.keep)
            run.status("running", phase="starting", step=self._plan.last_step, **started())
        try:
            session = build_session(recipe, world)
            loaded = self._go_on(session, saver)
            position = loaded.position if loaded else Position()
            environment = describe_environment(
                recipe, world.world_size, world.threads, session.loader.kind
            )
            metrics = Metrics(
                run.path,
                recipe,
                self._console,
                rank=world.rank,
                total_steps=session.total_steps,
                # As the rows were counted: --allow-mismatch may have changed the size of a step.
                step=loaded.manifest["step"] if loaded else 0,
                evaluated=position.validated,
            )
            self._say_start(metrics, session, loaded, position, environment)
            session.step.warm_up(session.preprocess.crop)
            about = {
                "run_hash": run_hash(recipe),
                "data_fingerprint": session.prepared.fingerprint,
                "environment": environment,
                "global_batch": recipe.train.global_batch,
                "steps_per_epoch": session.steps_per_epoch,
            }
            saving = Saving(session, saver, metrics, about, run.checkpoints, position.step)
            trainer = Trainer(session, run, saving, metrics, self._stop, position)
            outcome = trainer.run()
            if outcome == "finished":
                run.tick(phase="finishing")
                finish(session, run, metrics, self._console)
            if world.first:
                self._note_end(metrics, trainer.position.step, saving.saved_step, outcome)
            return outcome
        except (RuntimeError, MemoryError) as error:
            where = f"rank {world.rank} ({world.device})"
            if memory.is_out_of_memory(error):
                raise memory.explain(recipe, session, where) from None
            lost = lost_peer(error, where, recipe.engine.timeout, run.path)
            if lost is None:
                raise
            raise lost from None
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise UserError(
                f"{run.path} cannot be written: {error}; what was saved before is kept. Mend that, "
                f"then go on with: {resume_line(run.path)}"
            ) from None
        except KeyboardInterrupt:
            if saver is not None:
                saver.close(kill=True)
            raise
        finally:
            if metrics is not None:
                metrics.close()
            if saver is not None:
                saver.close()

    def _go_on(self, session: Session, saver: Saver | None) -> Loaded | None:
        """Rank 0 picks and verifies a checkpoint; every rank takes over the state it chose."""
        world, run = self._world, self._run
        names = frozen_names(session.engine.model)
        state = session.engine.model.state_dict()
        frozen = {name: tensor for name, tensor in state.items() if name in names}
        checkpoints = Checkpoints(run.path, frozen=frozen)

        mine: Loaded | None = None

        def pick() -> Path | None:
            nonlocal mine
            _require_space(session, run)
            mine = checkpoints.newest(self._say)
            return mine.folder if mine else None

        folder = from_first(world, pick)
        if saver is not None:
            good = mine.position.step if mine else None
            saver.go_on(names, checkpoints.frozen_entry, good)
        if folder is None:
            return None
        try:
            loaded = mine or checkpoints.load(folder)
        except DamagedError as error:  # a file system that shows its clients different things
            raise RankError(
                f"rank {world.rank} cannot read {folder}, which rank 0 has verified: {error}"
            ) from None
        fingerprint = loaded.manifest.get("data_fingerprint")
        if fingerprint != session.prepared.fingerprint and not self._data_may_differ:
            raise UserError(
                f"the prepared data changed under the run: it began on {fingerprint}, found is "
                f"{session.prepared.fingerprint}; put the data back, or start with resume=never "
                "(for those who know: --allow-mismatch data)"
            )
        session.load_full_state(loaded.state)
        loaded = replace(loaded, position=self._translated(loaded, session))
        if self._plan.before is not None:
            steps = session.steps_per_epoch
            old, step = self._plan.before, loaded.position.step
            require_end(old, self._recipe, step, steps, run=run.path)
        return loaded

    def _translated(self, loaded: Loaded, session: Session) -> Position:
        """The position in batches of this recipe, where --allow-mismatch let their size change."""
        position, manifest = loaded.position, loaded.manifest
        now = (session.steps_per_epoch, self._recipe.train.global_batch)
        then = (manifest.get("steps_per_epoch", now[0]), manifest.get("global_batch", now[1]))
        if then == now:
            return position
        return replace(position, step=translate_step(position.step, *then, *now))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _say_start(
        self,
        metrics: Metrics,
        session: Session,
        loaded: Loaded | None,
        position: Position,
        environment: dict[str, Any],
    ) -> None:
        world, recipe, run = self._world, self._recipe, self._run
        if not world.first:
            return
        write_json(run.path / "environment.json", environment)
        lost = max(0, self._plan.last_step - (loaded.manifest["step"] if loaded else 0))
        attempt = run.ownership.attempt
        metrics.event("start", attempt=attempt, step=position.step, steps_lost=lost, **environment)
        run.status(
            "running",
            phase="starting",
            step=position.step,
            total_steps=session.total_steps,
            epoch=position.step // session.steps_per_epoch,
            epochs=recipe.train.epochs,
            world_size=world.world_size,
        )
        if self._plan.verdict.changed and self._plan.before is not None:
            run.keep(recipe)
            changes = {key: list(pair) for key, pair in self._plan.verdict.changes.items()}
            metrics.event("changed", changes=changes)
        for line in (*self._plan.verdict.notices, session.loader.notice):
            if line:
                metrics.say(line)
        metrics.say(
            f"{recipe.name}: {recipe.method.name} on {recipe.model.name}, {session.total_steps} "
            f"steps of {recipe.train.global_batch} images in {recipe.train.epochs} epochs, "
            f"{world.world_size} x {world.device.type} ({world.threads} threads), "
            f"loader {session.loader.kind}, run {run.path}"
        )
        if loaded is None:
            return
        repeated = f", {lost} steps are done again" if lost else ""
        metrics.say(f"going on from step {position.step} ({loaded.folder}){repeated}")
        before = loaded.manifest.get("environment", {})
        changed = [k for k in environment if before.get(k) != environment[k]]
        if changed:
            said = ", ".join(f"{k} {before.get(k)} -> {environment[k]}" for k in changed)
            metrics.say(f"continuing, not bit-exact: {said} changed")

    def _note_end(self, metrics: Metrics, step: int, kept: int, outcome: Outcome) -> None:
        run = self._run
        reason = "" if outcome == "finished" else self._stop.reason or "asked on another rank"
        metrics.event(outcome, step=step, **({"reason": reason} if reason else {}))
        run.end(outcome, reason=reason, step=step)
        if outcome == "stopped":
            saved = (
                "saved" if kept == step else f"NOT saved, the newest checkpoint is of step {kept}"
            )
            metrics.say(
                f"stopped by {reason} at step {step}, {saved}; go on with: {resume_line(run.path)}"
            )


def _require_space(session: Session, run: RunFolder) -> None:
    """Room for the checkpoints kept, one being written, the frozen copies and best/."""
    tensors = session.engine.model.state_dict().values()
    model = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    moments = 2 if session.recipe.optim.name == "adamw" else 1
    averaged = 1 if session.recipe.ema.decay else 0
    one = model * (1 + moments + averaged)
    needed = one * (session.recipe.checkpoint.keep + 1) + 3 * model
    have = sum(f.stat().st_size for f in run.checkpoints.rglob("*") if f.is_file())
    require_space(run.path, needed - have, "the run with its checkpoints", "run_dir")


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return f"adafilter resume {shlex.quote(str(path))}"


@contextmanager
def _failures_noted(run: RunFolder, world: World) -> Iterator[None]:
    """status.json says failed and why, whatever ends the attempt."""
    try:
        yield
    except BaseException as error:
        if world.first:
            line = str(error).splitlines()[0] if str(error) else ""
            run.end("failed", reason=f"{type(error).__name__}: {line}")
        raise
