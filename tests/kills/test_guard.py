"""The comparison notices what a run that lost its way would differ in."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.kills.conftest import NewChain, Reference
from tests.kills.same import differences

pytestmark = pytest.mark.distributed


def test_the_last_bit_of_one_loss_is_noticed(undisturbed: Reference, tmp_path: Path) -> None:
    run = undisturbed(1, "numba")
    assert differences(run, run) == []
    copy = shutil.copytree(run, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[7]["loss"] = math.nextafter(rows[7]["loss"], 0)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = differences(copy, run)
    assert "row" in found and str(rows[7]["loss"]) in found


def test_a_row_too_many_is_noticed(undisturbed: Reference, tmp_path: Path) -> None:
    run = undisturbed(1, "numba")
    copy = shutil.copytree(run, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    again = next(line for line in lines if '"evaluation"' in line)
    (copy / "metrics.jsonl").write_text("".join([*lines, again]))
    assert any("2 rows of ('evaluation', 'val'" in found for found in differences(copy, run))


@pytest.mark.parametrize("name", ["model", "optimizer", "ema"])
def test_one_bit_of_one_tensor_is_noticed(
    undisturbed: Reference, tmp_path: Path, name: str
) -> None:
    run = undisturbed(1, "numba")
    copy = shutil.copytree(run, tmp_path / "run")
    file = max((copy / "checkpoints").glob("step-*")) / f"{name}.safetensors"
    tensors = load_file(file)
    changed = sorted(tensors)[len(tensors) // 2]
    tensors[changed].view("u1").reshape(-1)[0] ^= 1
    save_file(tensors, file)
    (found,) = differences(copy, run)
    assert changed in found and name in found


def test_a_run_of_another_seed_is_noticed(new_chain: NewChain, undisturbed: Reference) -> None:
    chain = new_chain()
    chain.words = [*chain.words, "seed=1"]
    found = differences(chain.end(), undisturbed(1, "numba"))
    assert any("bits differ" in line for line in found) and any("row" in line for line in found)
