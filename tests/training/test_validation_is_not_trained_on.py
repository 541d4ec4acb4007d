"""Validation pictures change nothing that is trained: they only measure and choose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.recipe import load_recipe
from tests.data import trees
from tests.distributed.launch import adafilter

pytestmark = pytest.mark.slow

SMALL = """\
base: imagefolder
data: {{root: {root}, stored_size: 32, resolution: 32, eval_resize: 32, loader: torchvision,
       val_fraction: 0.25, num_workers: 1}}
model: {{name: timm/test_resnet, weights: null}}
train: {{epochs: 3, global_batch: 8, micro_batch: 4}}
optim: {{lr: 0.05, lr_gate: 0.1, lr_head: 0.1}}
engine: {{device: cpu, threads: 1}}
evaluate: {{probe: false}}
log: {{to: []}}
"""
METHODS = ["finetune", "adafilter"]


def test_other_validation_pictures_leave_the_same_weights(tmp_path: Path) -> None:
    # Two folders that differ in the pictures of the validation split alone.
    one = trees.folders(tmp_path / "one", {"cat": 16, "dog": 16})
    (tmp_path / "one.yaml").write_text(SMALL.format(root=one))
    assert adafilter("prepare", "recipe=./one.yaml", folder=tmp_path).code == 0
    done = open_prepared(load_recipe([f"recipe={tmp_path}/one.yaml"]))
    paths = [row["path"] for row in read_list(done.folder / "train.csv")]
    validation = [paths[record] for record in done.split("val")[1]]
    assert len(validation) == 6
    two = tmp_path / "two"
    shutil.copytree(one, two, ignore=shutil.ignore_patterns("adafilter-*"))
    for path in validation:
        shutil.copy(two / paths[0], two / path)
    (tmp_path / "two.yaml").write_text(SMALL.format(root=two))
    assert adafilter("prepare", "recipe=./two.yaml", folder=tmp_path).code == 0

    for method in METHODS:
        runs = [trained(tmp_path, name, method) for name in ("one", "two")]
        assert runs[0][0] != runs[1][0]  # what was measured on validation
        assert runs[0][1].keys() == runs[1][1].keys()
        for name, array in runs[0][1].items():
            assert (array == runs[1][1][name]).all(), f"{method}: {name}"


def trained(folder: Path, name: str, method: str) -> tuple[list[float], dict[str, Any]]:
    """Losses on validation, and all tensors of the last checkpoint."""
    words = [f"recipe=./{name}.yaml", f"method={method}", f"run_dir={name}-{method}"]
    ended = adafilter("train", *words, folder=folder)
    assert ended.code == 0, ended.output
    run = folder / f"{name}-{method}"
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in rows if row.get("split") == "val"]
    newest = max((run / "checkpoints").glob("step-*"))
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for file in newest.glob("*.safetensors"):
        tensors |= {f"{file.stem}.{key}": value for key, value in load_file(file).items()}
    assert len(losses) == 3 and len(tensors) > 20
    return losses, tensors
