"""The end of a run: the test set is read once, and the run tells what it found."""

from __future__ import annotations

import io
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from adafilter_dist.atomic import write_text
from adafilter_dist.metrics import Metrics
from adafilter_dist.models.export import load
from adafilter_dist.report.figure import draw
from adafilter_dist.report.measure import measure
from adafilter_dist.report.results import Results
from adafilter_dist.report.summary import print_summary, write_summary
from adafilter_dist.run_folder import RunFolder
from adafilter_dist.session import Session


def finish(session: Session, run: RunFolder, metrics: Metrics, console: Console) -> None:
    """Measure the best model on the test set, then print and keep the summary and the figure."""
    recipe, world = session.recipe, session.world
    metrics.say("evaluating the best model on the test set")
    dist.barrier()  # rank 0 has written best/
    model, _ = load(run.path / "best")
    results = measure(
        model.to(world.device, session.engine.dtype),
        recipe,
        session.prepared,
        session.preprocess,
        world,
        probe=recipe.evaluate.probe,
        gates=recipe.evaluate.gates,
    )
    evaluation = results.evaluation
    row = {"loss": evaluation.loss, "top1": evaluation.top1, "top5": evaluation.top5}
    metrics.evaluation(session.total_steps, recipe.train.epochs - 1, "test", row)
    metrics.close()
    if world.first:
        _report(run, results, console)


def _report(run: RunFolder, results: Results, console: Console) -> None:
    write_summary(run.path, results)
    figure = draw(run.path, results, console)
    print_summary(console, run.path, results, figure)
    # Kept as text, for whoever asks for the same run again.
    text = io.StringIO()
    keeper = Console(file=text, width=100)
    print_summary(keeper, run.path, results, figure)
    write_text(_summary(run), text.getvalue())


def _summary(run: RunFolder) -> Path:
    return run.path / "figures" / "summary.txt"


def show_finished(run: RunFolder, console: Console) -> None:
    """Say that the run is already finished, with what it found."""
    if _summary(run).is_file():
        print(_summary(run).read_text())
    console.print(
        f"already finished: {run.path}; resume=never starts another",
        markup=False,
        soft_wrap=True,
    )
