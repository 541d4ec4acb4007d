"""Where choosing filters by picture pays by construction, AdaFilter must gain from it.

Smaller than recipes/control/mixed-domains.yaml asks for: fewer epochs, two draws of the pictures.
benchmarks/gate_control.py is the whole comparison, with rates chosen for each method and controls.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from adafilter_dist.data.sources.datasets import fetch_dataset
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data
from tests.distributed.launch import start, wait

# What the gain is here, less what seeds differ by. Without any one of its four parts (statistics
# by choosers, measured losses, an early decision, features of the pre-trained network) it is less.
LEAST_GAIN = 0.06
ARMS = {
    "finetune": ["method=finetune", "optim.lr=0.01", "evaluate.gates=false"],
    "adafilter": ["optim.lr=0.03"],
    # What a random gate's bits know is there from the first step on.
    "frozen": ["optim.lr=0.03", "method.gate.mode=frozen", "train.epochs=3"],
}


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """The summary of one arm on the pictures of one seed."""
    words = ["recipe=control/mixed-domains", f"seed={seed}", f"data.split_seed={seed}"]
    words += ["train.epochs=25", "log.to=[]", f"data.prepared={folder / f'data{seed}'}"]
    place = folder / f"{arm}{seed}"
    steps = [("train", [*words, *ARMS[arm], f"run_dir={place}"])]
    if not (folder / f"data{seed}").exists():
        steps.insert(0, ("prepare", words))
    for verb, each in steps:
        ended = wait(start([verb, *each], folder=folder), 240)
        assert ended.code == 0, ended.output
    summary: dict[str, Any] = json.loads((place / "figures" / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), pytest.param((0, 1), marks=pytest.mark.long)], ids=len)
def test_adafilter_gains_by_telling_the_domains_apart(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    try:
        fetch_dataset(Data(name="mixed_domains"), print)
    except UserError as error:
        pytest.skip(str(error))
    runs = {
        (arm, seed): run(tmp_path, arm, seed) for seed in seeds for arm in ("finetune", "adafilter")
    }
    accuracy = {key: found["evaluation"]["mean_of_domains"] for key, found in runs.items()}
    gains = [accuracy["adafilter", seed] - accuracy["finetune", seed] for seed in seeds]
    assert mean(gains) > LEAST_GAIN and min(gains) > 0, gains

    # Its bits know the domain, and a random gate's do not.
    learned = [runs["adafilter", seed]["gates"]["figures"]["information"] for seed in seeds]
    frozen = run(tmp_path, "frozen", 0)["gates"]["figures"]["information"]
    assert mean(learned) > 0.5 > 0.3 > frozen, (learned, frozen)
    shares = [domain["mean"] for domain in runs["adafilter", 0]["gates"]["domains"]]
    assert shares[0] < 0.3 and shares[1] > 0.7
