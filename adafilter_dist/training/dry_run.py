"""``train --check``: two real steps, one save and load, and what the whole run will take."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from adafilter_dist.checkpoint.saver import Saved, Saver
from adafilter_dist.checkpoint.store import Checkpoints, Position
from adafilter_dist.distributed import join_world
from adafilter_dist.engine import FullState
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.run.ownership import claim
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.disk import existing_parent, gib
from adafilter_dist.system.progress import duration
from adafilter_dist.training import memory
from adafilter_dist.training.cost import peak_memory
from adafilter_dist.training.out_of_memory import is_out_of_memory
from adafilter_dist.training.session import Session, build_session, frozen_tensor_names
from adafilter_dist.training.step import lr_factor_at

STEPS = 2


def run_check(recipe: Recipe, console: Console) -> int:
    """Run the check and print its result; leaves no files. Returns 0 or raises as training does."""
    session: Session | None = None
    with join_world(recipe) as world:
        try:
            session = build_session(recipe, world)
            session.step.warm_up(session.preprocess.crop)
            seconds = _steps(session)
            state = session.full_state()
        except (RuntimeError, MemoryError) as error:
            where = f"rank {world.rank} ({world.device})"
            if is_out_of_memory(error):
                raise memory.explain(recipe, session, where, error) from None
            raise
        if world.is_rank0:
            size, took = _save_and_load(session, state)
            _tell(session, console, seconds, size, took)
    return 0


def _steps(session: Session) -> float:
    """Seconds that the last of a few steps took; the first ones are slower."""
    times: list[float] = []
    with session.epoch(0) as batches:
        for step in range(min(STEPS, session.steps_per_epoch)):
            if session.world.device.type == "cuda" and not session.step.recorded:
                # Peaks of the warm-up and of the first step hold what cuDNN tried. (Those of a
                # replay do not hold its activations.)
                torch.cuda.reset_peak_memory_stats(session.world.device)
            began = time.perf_counter()
            figures, _ = session.step.run(
                step,
                0,
                batches,
                lr_factor_at(session.recipe, step, session.steps_per_epoch),
                stop=False,
                save=False,
            )
            loss = float(figures[0])  # waits for the device
            times.append(time.perf_counter() - began)
            if loss != loss:
                raise UserError(f"the loss is NaN at step {step}: lower optim.lr")
    return times[-1]


def _save_and_load(session: Session, state: FullState) -> tuple[int, float]:
    """Save, load and compare; returns the checkpoint's bytes and the seconds to save it."""
    place = existing_parent(run_dir(session.recipe).parent)
    with tempfile.TemporaryDirectory(prefix=".adafilter-check-", dir=place) as name:
        run = Path(name)
        saver = Saver(claim(run))
        saver.start_from(frozen_tensor_names(session.engine.model), None, None)
        began = time.perf_counter()
        try:
            saver.save(state, Position(step=STEPS), {})
            result = saver.result(wait=True)
        finally:
            saver.close()
        if not isinstance(result, Saved):
            raise UserError(f"{place}: a checkpoint cannot be saved there: {result}")
        took = time.perf_counter() - began
        store = Checkpoints(run)
        folder = store.folder / result.folder
        read = dict(store.load(folder).state.tensors())
        for key, tensor in state.tensors():
            if not torch.equal(read[key], tensor.cpu()):
                raise AssertionError(f"{key} was not read back as it was saved")
        session.load_full_state(store.load(folder).state)
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
    return size, took


def _tell(session: Session, console: Console, step: float, size: int, took: float) -> None:
    world, recipe = session.world, session.recipe
    graph = session.step.memory_to_come
    peak = peak_memory(world.device) + graph
    if world.device.type == "cuda":
        where = f"of {gib(torch.cuda.get_device_properties(world.device).total_memory)} on the GPU"
    else:
        where = "of host memory a process"
    images = recipe.train.global_batch / step
    lines = [
        f"{recipe.name}: {STEPS} steps, one save and one load went well",
        f"time     {step:.2f} s a step, {images:,.0f} images/s; {session.total_steps} steps: "
        f"{duration(step * session.total_steps)}, validation not counted",
        f"disk     {gib(size)} a checkpoint ({took:.1f} s to save), up to "
        f"{gib(size * (recipe.checkpoint.keep + 1))} a run",
        f"memory   {gib(peak)} at the peak {where}, micro_batch {recipe.train.micro_batch}, "
        f"{recipe.train.together} in a forward"
        + (f"; {gib(graph)} of it for train.graph" if graph else ""),
    ]
    print_plain(console, *lines)
