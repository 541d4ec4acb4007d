"""One attempt at a run: join the others, claim the run, go on from its newest checkpoint."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console as RichConsole

from adafilter_dist.checkpoint.saver import Saver
from adafilter_dist.checkpoint.store import Checkpoints, Loaded, Position
from adafilter_dist.distributed import World, join_world
from adafilter_dist.distributed.lost_peer import RankError, from_first, lost_peer
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.metrics import Metrics
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.changes import require_end, translate_step
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.run.folder import RunFolder, describe_environment, started
from adafilter_dist.run.removal import nothing_left
from adafilter_dist.run.space import require_run_space, space_of_run
from adafilter_dist.system.console import Console
from adafilter_dist.system.sealed_files import DamagedError
from adafilter_dist.training import memory
from adafilter_dist.training.announce import Outcome, tell_end, tell_start
from adafilter_dist.training.best import mend_best
from adafilter_dist.training.checkpointing import Saving
from adafilter_dist.training.failures import failures_noted
from adafilter_dist.training.final_report import finish, show_finished
from adafilter_dist.training.loop import Trainer
from adafilter_dist.training.plan import Plan, make_plan
from adafilter_dist.training.preemption import UNREAD, stop_on_signal
from adafilter_dist.training.run_data import may_differ
from adafilter_dist.training.session import Session, build_session, frozen_names
from adafilter_dist.training.stage_data import Watch
from adafilter_dist.training.stop_policy import Surroundings, require_progress

STOPPED = 75
# What a disk says that is full, read-only, gone or broken.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EIO, errno.ESTALE}


def run_attempt(
    recipe: Recipe,
    console: RichConsole,
    *,
    allow_mismatch: Collection[str] = (),
    around: Surroundings | None = None,
    every_gate: bool = False,
) -> int:
    """Train ``recipe`` from where its run stands; 0 finished, 75 stopped and resumable.

    ``allow_mismatch`` names keys in which it may differ from the run's although they change the
    numbers. ``every_gate``: at the end the gates of all layers are printed. Under torchrun a clean
    stop gives 0 too: its agent would restart or hide anything else.
    """
    around = around or Surroundings()
    if isinstance(console, Console):
        console.when_unread(partial(around.stop.ask, UNREAD))
    with stop_on_signal(around.stop), join_world(recipe) as world:
        plan = from_first(world, lambda: make_plan(recipe, allow_mismatch))

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        run = RunFolder(plan.path, say)
        if plan.done:
            if world.first:
                show_finished(run, console, every_gate=every_gate)
                for line in plan.notices:
                    say(f"note: {line}")
            return 0
        number = from_first(world, lambda: run.enter(plan.verdict.recipe))
        with nothing_left(run), failures_noted(run, world, number):
            outcome = _Attempt(
                plan, run, world, around, console, allow_mismatch, every_gate
            ).train()
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
        around: Surroundings,
        console: RichConsole,
        allow: Collection[str],
        every_gate: bool,
    ) -> None:
        self._plan = plan
        self._recipe = plan.verdict.recipe
        self._run = run
        self._world = world
        self._around = around
        self._stop = around.stop
        self._console = console
        self._every_gate = every_gate
        self._data_may_differ = may_differ(allow)

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
            session = build_session(recipe, world, self._while_staging(), self._plan.data)
            loaded = self._go_on(session, saver)
            position = loaded.position if loaded else Position()
            environment = describe_environment(
                recipe, world.world_size, world.threads, session.loader.kind, session.kernels
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
            from_first(world, lambda: self._require_progress(position.step))
            if world.first:
                tell_start(run, self._plan, session, metrics, loaded, environment)
            session.step.warm_up(session.preprocess.crop)
            about = {
                "run_hash": run_hash(recipe),
                "data_fingerprint": session.prepared.fingerprint,
                "environment": environment,
                "global_batch": recipe.train.global_batch,
                "steps_per_epoch": session.steps_per_epoch,
            }
            saving = Saving(session, saver, metrics, about, run.checkpoints, position.step)
            trainer = Trainer(session, run, saving, metrics, self._around, position)
            outcome = trainer.run()
            if outcome == "finished":
                run.tick(phase="finishing")
                self._stop.answer = "the run is trained; it ends after its last evaluation"
                finish(session, run, metrics, self._console, every_gate=self._every_gate)
            if world.first:
                asked = self._stop.reason or "asked on another rank"
                reason = self._around.explain(asked) if outcome == "stopped" else ""
                tell_end(run, metrics, outcome, reason, trainer.position.step, saving.saved_step)
            return outcome
        except (RuntimeError, MemoryError) as error:
            where = f"rank {world.rank} ({world.device})"
            if memory.is_out_of_memory(error):
                raise memory.explain(recipe, session, where, error) from None
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
        world, run, recipe = self._world, self._run, self._recipe
        names = frozen_names(session.engine.model)
        state = session.full_state().model
        frozen = {name: tensor for name, tensor in state.items() if name in names}
        checkpoints = Checkpoints(run.path, frozen=frozen)

        mine: Loaded | None = None

        def pick() -> Path | None:
            nonlocal mine
            require_run_space(run.path, space_of_run(state, recipe))
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
        return replace(loaded, position=mend_best(session, run, checkpoints, loaded, self._say))

    def _translated(self, loaded: Loaded, session: Session) -> Position:
        """The position in batches of this recipe, where --allow-mismatch let their size change."""
        position, manifest = loaded.position, loaded.manifest
        now = (session.steps_per_epoch, self._recipe.train.global_batch)
        then = (manifest.get("steps_per_epoch", now[0]), manifest.get("global_batch", now[1]))
        if then == now:
            return position
        return replace(position, step=translate_step(position.step, *then, *now))

    def _require_progress(self, step: int) -> None:
        allowed = self._around.max_restarts
        if allowed is not None:
            require_progress(self._run.path, self._run.ownership.attempt, step, allowed)

    def _while_staging(self) -> Watch:
        staged = self._recipe.data.stage_to is not None
        return Watch(
            tick=lambda: self._run.tick(phase="staging" if staged else "verifying"),
            stopped=lambda: self._stop.raised,
            tell=self._say,
        )

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
