"""One attempt at a run: join the other ranks, claim the run, resume its newest checkpoint."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console as RichConsole

from adafilter_dist.checkpoint.saver import Saver
from adafilter_dist.checkpoint.store import Checkpoints, Loaded, Position
from adafilter_dist.distributed import World, join_world
from adafilter_dist.distributed.lost_peer import RankError, from_rank0, lost_peer
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.evaluate.oracle import require_oracle
from adafilter_dist.metrics import Metrics
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.changes import require_end, translate_step
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.run.folder import RunFolder, started
from adafilter_dist.run.removal import removed_if_not_begun
from adafilter_dist.run.space import require_run_space, space_of_run
from adafilter_dist.system.console import Console, print_plain
from adafilter_dist.system.sealed_files import DamagedError
from adafilter_dist.training import memory
from adafilter_dist.training.announce import Outcome, announce_end, announce_start
from adafilter_dist.training.best import repair_best
from adafilter_dist.training.checkpointing import CheckpointSchedule
from adafilter_dist.training.control_run import require_control
from adafilter_dist.training.environment import describe_environment
from adafilter_dist.training.failures import failures_recorded
from adafilter_dist.training.final_report import finish, show_finished
from adafilter_dist.training.forward_size import kept_together
from adafilter_dist.training.gate_start import gates_at_start
from adafilter_dist.training.hang_watch import HangWatch
from adafilter_dist.training.loop import Trainer
from adafilter_dist.training.method_start import start_method
from adafilter_dist.training.out_of_memory import is_out_of_memory
from adafilter_dist.training.plan import AttemptPlan, make_plan
from adafilter_dist.training.preemption import OUTPUT_CLOSED, stop_on_signal
from adafilter_dist.training.run_data import may_differ
from adafilter_dist.training.session import Session, build_session, frozen_tensor_names
from adafilter_dist.training.stage_data import StagingCallbacks
from adafilter_dist.training.stop_policy import StopPolicy, require_progress

STOPPED = 75
# What a disk says that is full, read-only, gone or broken.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EIO, errno.ESTALE}


def run_attempt(
    recipe: Recipe,
    console: RichConsole,
    *,
    allow_mismatch: Collection[str] = (),
    stop_policy: StopPolicy | None = None,
    every_gate: bool = False,
) -> int:
    """Train ``recipe`` from where its run stands; returns 0 when finished, 75 when resumable.

    ``allow_mismatch`` names keys in which the recipe may differ from the run's although they change
    the numbers. ``every_gate`` prints the gates of all layers at the end. Under torchrun a clean
    stop returns 0 too: torchrun would restart the ranks, or hide any other code.
    """
    stop_policy = stop_policy or StopPolicy()
    if isinstance(console, Console):
        console.when_unread(partial(stop_policy.stop.ask, OUTPUT_CLOSED))
    with stop_on_signal(stop_policy.stop), join_world(recipe) as world:
        plan = from_rank0(world, lambda: make_plan(recipe, allow_mismatch))
        say = partial(print_plain, console)
        run = RunFolder(plan.path, say)
        if plan.done:
            if world.is_rank0:
                show_finished(run, console, every_gate=every_gate)
                for line in plan.notices:
                    say(f"note: {line}")
            return 0
        number = from_rank0(world, lambda: run.enter(plan.decision.recipe))
        after_hang = stop_policy.after_hang
        with (
            removed_if_not_begun(run),
            failures_recorded(run, world, number),
            HangWatch(plan.decision.recipe, world, run.path, number, after_hang),
        ):
            outcome = _Attempt(
                plan, run, world, stop_policy, console, allow_mismatch, every_gate
            ).train()
    if outcome == "finished":
        return 0
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


class _Attempt:
    """The state that the phases of one attempt share."""

    def __init__(
        self,
        plan: AttemptPlan,
        run: RunFolder,
        world: World,
        stop_policy: StopPolicy,
        console: RichConsole,
        allow: Collection[str],
        every_gate: bool,
    ) -> None:
        self._plan = plan
        self._recipe = plan.decision.recipe
        self._run = run
        self._world = world
        self._stop_policy = stop_policy
        self._stop = stop_policy.stop
        self._console = console
        self._say = partial(print_plain, console)
        self._every_gate = every_gate
        self._data_may_differ = may_differ(allow)

    def train(self) -> Outcome:
        """Build, load, train to the end or to a stop, and record how the attempt ended."""
        session: Session | None = None
        metrics: Metrics | None = None
        saver: Saver | None = None
        run, world, recipe = self._run, self._world, self._recipe
        progress = world.progress
        if world.is_rank0:
            saver = Saver(run.ownership, keep=recipe.checkpoint.keep)
            run.status("running", phase="starting", step=self._plan.last_step, **started())
        try:
            # Build everything, then take over the newest checkpoint, if there is one.
            session = build_session(
                recipe,
                world,
                self._staging_callbacks(),
                self._plan.data,
                self._kept_together(),
                self._plan.loader,
            )
            if recipe.evaluate.control is not None:
                require_control(recipe.evaluate.control, session.prepared)
            require_oracle(recipe.evaluate.oracle, session.prepared)
            progress.enter("looking at the gates")
            start = gates_at_start(session, run.files, self._say)
            progress.move("reading the newest checkpoint")
            loaded = self._resume(session, saver)
            position = loaded.position if loaded else Position()
            environment = describe_environment(
                session.recipe,
                world.world_size,
                world.threads,
                session.loader.kind,
                session.kernels,
            )

            # Announce the start. A job that was restarted too often without progress ends here.
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
            session.counting = metrics.counting
            progress.enter("announcing the start")
            from_rank0(world, lambda: self._require_progress(position.step))
            if world.is_rank0:
                announce_start(run, self._plan, session, metrics, loaded, environment)

            if position.step == 0:
                start_method(session, metrics.say, self._looking_at_pictures)

            # Train. Each checkpoint says in its manifest what it may be resumed with.
            about = {
                "run_hash": run_hash(recipe),
                "data_fingerprint": session.prepared.fingerprint,
                "environment": environment,
                "global_batch": recipe.train.global_batch,
                "steps_per_epoch": session.steps_per_epoch,
            }
            save_schedule = CheckpointSchedule(
                session, saver, metrics, about, run.checkpoints, position.step
            )
            trainer = Trainer(
                session, run, save_schedule, metrics, self._stop_policy, position, start
            )
            # torch.compile may take as long as it needs.
            compiles = recipe.train.compile
            with progress.unlimited("compiling") if compiles else nullcontext():
                progress.enter("the first reduction")
                session.step.warm_up(session.preprocess.crop)
            outcome = trainer.run()
            progress.end_steps()

            # Measure the best model on the test set if this was the end; record how it ended.
            if outcome == "finished":
                run.tick(phase="finishing")
                self._stop.answer = "the run is trained; it ends after its last evaluation"
                finish(
                    session,
                    run,
                    metrics,
                    self._console,
                    start,
                    every_gate=self._every_gate,
                    cost=trainer.clock.cost(session),
                )
            if world.is_rank0:
                asked = self._stop.reason or "asked on another rank"
                reason = self._stop_policy.explain(asked) if outcome == "stopped" else ""
                announce_end(
                    run, metrics, outcome, reason, trainer.position.step, save_schedule.saved_step
                )
            return outcome
        # Errors with a known cause get one line that says what to do.
        except (RuntimeError, MemoryError) as error:
            where = f"rank {world.rank} ({world.device})"
            if is_out_of_memory(error):
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
            # A checkpoint that is still being written is waited for.
            with progress.unlimited("closing"):
                if metrics is not None:
                    metrics.close()
                if saver is not None:
                    saver.close()

    def _looking_at_pictures(self) -> None:
        self._world.progress.move("looking at the training pictures")
        self._run.tick(phase="starting")

    def _kept_together(self) -> int | None:
        """How many micro-batches shared a forward in the last attempt, if nothing has changed."""
        world = self._world
        now = describe_environment(self._recipe, world.world_size, world.threads, "", "")
        return kept_together(self._plan.environment, now)

    def _resume(self, session: Session, saver: Saver | None) -> Loaded | None:
        """Load the run's newest sound checkpoint, if any: rank 0 chooses, every rank loads."""
        world, run, recipe = self._world, self._run, self._recipe
        names = frozen_tensor_names(session.engine.model)
        state = session.full_state().model
        frozen = {name: tensor for name, tensor in state.items() if name in names}
        checkpoints = Checkpoints(run.path, frozen=frozen)

        mine: Loaded | None = None

        def pick() -> Path | None:
            nonlocal mine
            require_run_space(run.path, space_of_run(state, recipe))
            mine = checkpoints.newest(self._say)
            return mine.folder if mine else None

        folder = from_rank0(world, pick)
        if saver is not None:
            resumed_step = mine.position.step if mine else None
            saver.start_from(names, checkpoints.frozen_entry, resumed_step)
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
        return replace(loaded, position=repair_best(session, run, checkpoints, loaded, self._say))

    def _translated(self, loaded: Loaded, session: Session) -> Position:
        """The loaded position, counted in this recipe's steps if --allow-mismatch changed them."""
        position, manifest = loaded.position, loaded.manifest
        now = (session.steps_per_epoch, self._recipe.train.global_batch)
        then = (manifest.get("steps_per_epoch", now[0]), manifest.get("global_batch", now[1]))
        if then == now:
            return position
        return replace(position, step=translate_step(position.step, *then, *now))

    def _require_progress(self, step: int) -> None:
        allowed = self._stop_policy.max_restarts
        if allowed is not None:
            require_progress(self._run.path, self._run.ownership.attempt, step, allowed)

    def _staging_callbacks(self) -> StagingCallbacks:
        staged = self._recipe.data.stage_to is not None
        return StagingCallbacks(
            tick=lambda: self._run.tick(phase="staging" if staged else "verifying"),
            stopped=lambda: self._stop.raised,
            tell=self._say,
        )
