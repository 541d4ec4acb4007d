"""Run folders as a long training on many classes would leave them, made up in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate.ablations import TITLES
from adafilter_dist.evaluate.gate_choices import GateChoices
from adafilter_dist.recipe import load_recipe
from adafilter_dist.report.outcomes import PictureOutcomes
from adafilter_dist.report.test_pictures import TestPictures
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.kept_recipe import keep
from adafilter_dist.system.files import write_json
from adafilter_dist.system.json_lines import append

BEGIN = datetime(2026, 11, 28, tzinfo=UTC).timestamp()
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '<img src=x onerror="window.hacked = 3">',
    "a & b < c > d \"e\" 'f'",
    "{{ 7 * 7 }} {% raw %}",
    "a name that is so long that it does not fit beside any chart, whatever its width may be",
    "Straße in Ελλάδα",
    "datum.v ? 'x' : `${window.hacked = 4}`",
)


def made_up_run(
    folder: Path,
    *,
    classes: Sequence[str] = HOSTILE,
    pictures: int = 400,
    layers: int = 6,
    steps: int = 300,
    restarts: Sequence[int] = (90, 200),
    accuracy: float = 0.7,
    words: Sequence[str] = (),
    domains: Sequence[str] = ("<b>near</b>", "far"),
    seed: int = 0,
) -> Path:
    """A run of ``pictures`` test pictures, with every file that its page is made of."""
    draw, n, number = np.random.default_rng(seed), pictures, len(classes)
    files = RunFiles(folder)
    folder.mkdir(parents=True)
    keep(folder, load_recipe(["recipe=food101", f"seed={seed}", *words]))
    status = {"state": "finished", "step": steps, "total_steps": steps}
    write_json(files.status, {**status, "attempt": len(restarts) + 1})
    write_json(files.environment, {"adafilter_dist": "0.2.0", "torch": "2.15", "world_size": 8})

    # Attempts, each of which begins some steps before the last one ended.
    firsts = (0, *restarts)
    for turn, step in enumerate(firsts):
        time = datetime.fromtimestamp(BEGIN + 3600 * turn, UTC).isoformat()
        start = {"kind": "start", "attempt": turn + 1, "step": step, "steps_lost": 3 * turn}
        append(files.events, {"time": time, **start})

    # Curves.
    with files.metrics.open("w") as file:
        for step in range(1, steps + 1):
            loss = 3 / (1 + 8 * step / steps) + float(draw.normal(0, 0.05))
            row = {"kind": "train", "step": step, "loss": loss, "accuracy": 1 / (1 + loss)}
            row |= {"lr": 0.01 * (1 - step / steps), "images_per_second": 900.0, "data_wait": 0.1}
            turn = sum(step > first for first in restarts)
            row["time"] = BEGIN + 3600 * turn + step - firsts[turn]  # a step takes a second
            file.write(json.dumps(row) + "\n")
            if step % max(1, steps // 20) == 0:
                head = {"kind": "evaluation", "split": "val", "step": step, "epoch": step // 15}
                row = {"loss": loss + 0.2, "top1": 0.9 / (1 + loss), "gate_mean": 0.6}
                file.write(json.dumps(head | row | {"gate_changed": 0.3}) + "\n")

    # Test pictures: the classes of which the model knows the first least.
    labels = np.sort(draw.integers(0, number, n))
    right = draw.random(n) < accuracy + 0.25 * (labels / number - 0.5)
    others = (labels + 1 + draw.geometric(0.3, n)) % number
    predictions = np.where(right, labels, others)
    sure = draw.uniform(0.3, 1, n).astype(np.float32)
    PictureOutcomes(
        labels, predictions, np.where(right, 0.2, 2.5), list(classes), "f00d", "5t0re"
    ).write(folder)

    # Gates: first layers by picture, middle ones by class, the last not at all.
    filters = np.full(layers, 64)
    kind = np.arange(layers) * 3 // layers
    by_class = draw.uniform(0, 1, (number, layers))[labels]
    by_picture = draw.uniform(0, 1, (n, layers))
    share = np.choose(kind, [by_picture, by_class.round(), np.full((n, layers), 0.97)])
    fine_tuned = (share * filters).round().astype(np.uint16)
    names = [f"layer{i // 6 + 1}.{i // 3}.conv{i % 3 + 1}" for i in range(layers)]
    of_domain = Domains(list(domains), draw.integers(0, len(domains), n)) if domains else None
    gates = GateChoices(names, filters, fine_tuned)
    TestPictures("f00d", sure, gates, of_domain).write(folder)

    # Numbers.
    confusion = np.zeros((number, number), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    top1 = float((predictions == labels).mean())
    figures = {"n": n, "loss": 1.0, "top1": top1, "top5": 0.9, "mean_per_class": top1}
    less = {"value": 0.05, "standard_error": 0.01, "low": 0.03, "high": 0.07}
    means = fine_tuned.mean(axis=0) / filters
    within = np.choose(kind, [0.2, 0.02, 0.001])
    between = np.choose(kind, [0.01, 0.15, 0.0])
    numbers = {
        "split": "test",
        "evaluation": {**figures, "confusion": confusion.tolist()},
        "control": {"run": "/nowhere", "method": "finetune", **figures, "run_minus_control": less},
        "probe": {"test": figures},
        "gates": {
            "figures": {"mean": float(means.mean()), "between": 0.05, "within": 0.1},
            "ablations": {name: {**figures, "learned_minus_this": less} for name in TITLES},
            "layers": [
                {
                    **{"name": names[i], "filters": int(filters[i]), "mean": float(means[i])},
                    **{"variance": float(within[i] + between[i]), "between": float(between[i])},
                    "constant": 0.1,
                }
                for i in range(layers)
            ],
        },
        "cost": {"step_seconds": 0.2, "peak_memory": 2**31, "memory_of": "device"},
    }
    files.figures.mkdir()
    write_json(files.summary_numbers, numbers)
    return folder
