"""The end of a run: measures the best model on the test set once, and writes the report."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import torch.distributed as dist
from rich.console import Console

from adafilter_dist.evaluate.gate_probe import ProbeGates
from adafilter_dist.metrics import Metrics
from adafilter_dist.recipe import Recipe
from adafilter_dist.report.figure import draw
from adafilter_dist.report.measure import measure
from adafilter_dist.report.outcomes import write_test_outcomes
from adafilter_dist.report.page.single import page_at_the_end
from adafilter_dist.report.results import Results, RunCost
from adafilter_dist.report.summary import print_summary, write_gates, write_summary
from adafilter_dist.report.test_pictures import write_test_pictures
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.files import write_text
from adafilter_dist.training.best import best_damage, load_best
from adafilter_dist.training.control_run import open_control
from adafilter_dist.training.session import Session


def finish(
    session: Session,
    run: RunFolder,
    metrics: Metrics,
    console: Console,
    start: ProbeGates | None = None,
    *,
    every_gate: bool = False,
    cost: RunCost | None = None,
) -> None:
    """Measure the best model on the test set, then print and store the summary and the figure.

    Under ``evaluate.test=false`` it only says so, and reads no picture of the test set.
    ``start`` holds the gates before the first step. ``every_gate`` also prints the gates of all
    layers, which are stored in any case. ``cost`` is what training took.
    """
    recipe, world = session.recipe, session.world
    if not recipe.evaluate.test:
        metrics.say("not evaluated on the test set (evaluate.test=false)")
        return
    metrics.say("evaluating the best model on the test set")
    progress = world.progress
    progress.enter("waiting for best/")
    dist.barrier()  # rank 0 has written best/
    progress.move("loading best/")
    model = load_best(run.path)
    results = measure(
        model.to(world.device, session.engine.dtype),
        session.evaluator,
        probe=recipe.evaluate.probe,
        gates=recipe.evaluate.gates,
        start=start,
        control=open_control(recipe.evaluate.control, session.prepared),
    )
    results = replace(results, cost=cost)
    row = results.evaluation.row()
    metrics.evaluation(session.total_steps, recipe.train.epochs - 1, "test", row)
    if results.gate_warning:
        metrics.event("gates", warning=results.gate_warning)
    if session.cache is not None:
        metrics.say(session.cache.summary(world.world_size))
    metrics.close()
    if world.is_rank0:
        progress.move("writing the report")
        assert results.outcomes is not None
        write_test_outcomes(run.path, results.outcomes, session.prepared)
        choices = results.gates.choices if results.gates is not None else None
        write_test_pictures(run.path, results.outcomes, choices, session.prepared)
        _report(run, results, recipe, console, every_gate)


def _report(
    run: RunFolder, results: Results, recipe: Recipe, console: Console, every_gate: bool
) -> None:
    files = {
        "numbers": write_summary(run.path, results),
        "all gates": write_gates(run.path, results),
        "figure": draw(run.path, results, console),
    }
    files["page"] = page_at_the_end(run.path, recipe, console)
    print_summary(console, run.path, results, files, every_gate=every_gate)
    # Kept as text, to be printed when the same run is asked for again.
    text = io.StringIO()
    print_summary(Console(file=text, width=100), run.path, results, files)
    write_text(run.files.summary, text.getvalue())


def show_finished(run: RunFolder, console: Console, *, every_gate: bool = False) -> None:
    """Say that the run is already finished, and print its stored summary."""
    kept = [run.files.summary, *([run.files.gates] if every_gate else [])]
    for path in kept:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # figures/ can be deleted
            print(path.read_text())
    damage = best_damage(run.path)
    if damage:
        print_plain(console, f"warning: {damage}; there is no checkpoint left to write it from")
    print_plain(console, f"already finished: {run.path}; resume=never starts another")
