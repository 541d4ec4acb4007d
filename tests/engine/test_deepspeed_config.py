"""What DeepSpeed is given: the recipe's figures, and the user's settings beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.engine.deepspeed import BUCKET, _config
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed


def given(folder: Path, world_size: int, config: str = "", *words: str) -> dict[str, Any]:
    file = folder / "mine.yaml"
    file.write_text(
        "name: mine\ndata: {name: imagefolder, root: pictures}\n"
        "train: {global_batch: 64, micro_batch: 8, clip_norm: 5}\n"
        f"engine: {{name: deepspeed, config: {{{config}}}}}\n"
    )
    recipe = load_recipe([f"recipe={file}", *words])
    assert isinstance(recipe.engine, DeepSpeed)
    return _config(recipe, recipe.engine, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_batches_follow_from_the_recipe_and_the_ranks(tmp_path: Path, world_size: int) -> None:
    found = given(tmp_path, world_size)
    accumulated = found["gradient_accumulation_steps"]
    assert found["train_batch_size"] == 64 and found["train_micro_batch_size_per_gpu"] == 8
    assert accumulated * world_size * 8 == 64


def test_torch_clips_where_deepspeed_would_round(tmp_path: Path) -> None:
    assert given(tmp_path, 1)["gradient_clipping"] == 5.0
    assert given(tmp_path, 1, "", "engine.zero_stage=0")["gradient_clipping"] == 0.0
    assert given(tmp_path, 1, "", "train.clip_norm=null")["gradient_clipping"] == 0.0


def test_settings_beside_the_recipe_are_handed_on(tmp_path: Path) -> None:
    ours = {"stage": 2, "overlap_comm": False, "reduce_bucket_size": BUCKET}
    assert given(tmp_path, 1)["zero_optimization"] == ours
    found = given(
        tmp_path,
        1,
        "steps_per_print: 7, zero_optimization: {overlap_comm: true, reduce_bucket_size: 1000}",
        "engine.zero_stage=1",
    )
    wanted = {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1000}
    assert (found["steps_per_print"], found["zero_optimization"]) == (7, wanted)


def test_what_is_off_or_left_open_is_not_said(tmp_path: Path) -> None:
    found = given(
        tmp_path,
        1,
        "fp16: {enabled: false}, bf16: {enabled: auto}, train_batch_size: auto, "
        "optimizer: auto, zero_optimization: {stage: auto, reduce_bucket_size: auto}",
    )
    assert found == given(tmp_path, 1)
