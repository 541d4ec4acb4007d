"""The positive control through the command itself: fine-tuning has the accuracy it is known for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adafilter_dist.data.sources.datasets import fetch_dataset
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data
from tests.distributed.launch import start, wait


@pytest.mark.slow
def test_plain_fine_tuning_in_both_domains(tmp_path: Path) -> None:
    try:
        fetch_dataset(Data(name="mixed_domains"), print)
    except UserError as error:
        pytest.skip(str(error))
    words = ["recipe=control/mixed-domains", "method=finetune", "optim.lr=0.01", "log.to=[]"]
    words += [f"data.prepared={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    for verb in ("prepare", "train"):
        ended = wait(start([verb, *words], folder=tmp_path), 240)
        assert ended.code == 0, ended.output
    found = json.loads((tmp_path / "run" / "figures" / "summary.json").read_text())["evaluation"]
    original, changed = (domain["top1"] for domain in found["domains"])
    assert [domain["n"] for domain in found["domains"]] == [1000, 1000]
    assert found["mean_of_domains"] == pytest.approx((original + changed) / 2)
    # Draws differ by 2 points; without the weights, their head or the labels it would be far off.
    assert 0.60 < found["mean_of_domains"] < 0.70 and original > changed + 0.05
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    (test,) = (row for row in rows if row.get("split") == "test")
    assert test["top1/original"] == original and test["top1/inverted+turned"] == changed
