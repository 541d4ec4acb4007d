"""Folders of comparisons whose runs are what their files say, without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from adafilter_dist.compare.plan import Plan, final_run, trial_run
from adafilter_dist.compare.request import read_request
from adafilter_dist.report.outcomes import PictureOutcomes
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_json

PICTURES, CLASSES = 300, ["bag", "boot", "coat"]


def plan_in(folder: Path, *words: str) -> Plan:
    """The plan of these words, kept in the folder."""
    plan = read_request(["recipe=control/mixed-domains", *words]).plan
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder)
    return plan


def outcomes(
    margin: float, seed: int, *, data: str = "d0", pictures: str = "t0"
) -> PictureOutcomes:
    """Outcomes of a method whose accuracy grows with ``margin``; difficulties are the pictures'."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(0)
    labels = shared.integers(len(CLASSES), size=PICTURES)
    difficulty = 2 * shared.standard_normal(PICTURES)
    effects = margin + difficulty + 0.05 * own.standard_normal()
    right = effects + 0.5 * own.standard_normal(PICTURES) > 0
    predictions = np.where(right, labels, (labels + 1) % len(CLASSES))
    return PictureOutcomes(labels, predictions, np.where(right, 0.1, 2.0), CLASSES, data, pictures)


def finished(run: Path, validation: float, test: PictureOutcomes | None, **cost: float) -> None:
    """A finished run with a validation accuracy; trials have no ``test``."""
    files = RunFiles(run)
    run.mkdir(parents=True)
    files.write_status({"state": "finished"})
    rows = [
        {"kind": "evaluation", "split": "val", "step": step, "top1": validation - drop}
        for step, drop in ((1, 0.1), (2, 0.0), (3, 0.05))
    ]
    files.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if test is not None:
        test.write(run)
        files.figures.mkdir()
        write_json(files.figures / "summary.json", {"cost": {"memory_of": "process", **cost}})


def contender(folder: Path, plan: Plan, name: str, margin: float, speed: float = 0.1) -> None:
    """All runs of a contender: seeds around ``margin``, trials that are better at higher rates."""
    number = [each.name for each in plan.contenders].index(name)
    for seed in plan.seeds:
        test = outcomes(margin, 100 * number + seed)
        cost = {"step_seconds": speed, "peak_memory": 2**20 * 50, "trained_parameters": 1000}
        finished(final_run(folder, name, seed), 0.6, test, **cost)
    for k, point in enumerate(plan.design):
        finished(trial_run(folder, name, k), 0.5 + 0.2 * point[0], None)
