"""A run that is asked to stop stops within a few steps, however few an epoch has."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from adafilter_dist.__main__ import main
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.training.attempt import run_attempt
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.stop_policy import StopPolicy
from tests.data import trees


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3])
def test_a_stop_is_heard_whatever_the_length_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_per_epoch: int
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = {"train": 6, "val": 1, "test": 1}
    root = trees.folders(
        tmp_path / "pictures", {f"{s}/{c}": n for s, n in counts.items() for c in ("owl", "wren")}
    )
    batch = 12 // steps_per_epoch
    words = [
        *("recipe=imagefolder", f"data.root={root}", "data.stored_size=32", "data.resolution=32"),
        *(
            "data.eval_resize=32",
            "data.num_workers=1",
            "model.name=timm/test_resnet",
            "model.weights=null",
        ),
        *(f"train.global_batch={batch}", f"train.micro_batch={batch}", "train.epochs=20"),
        *("train.kernels=reference", "engine.device=cpu", "engine.threads=1"),
    ]
    assert main(["prepare", *words]) == 0
    recipe, stop_policy = load_recipe(words), StopPolicy()
    stop_policy.stop.ask("a test")
    assert run_attempt(recipe, Console(file=io.StringIO()), stop_policy=stop_policy) == 75
    status = json.loads((run_dir(recipe) / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "a test")
    assert 1 <= status["step"] <= DELAY + 1  # as few as that, of 20 and more
