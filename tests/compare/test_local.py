"""A comparison on this machine, killed and interrupted: what comes of it is the same to the bit."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.runs import PlannedRun, all_runs
from adafilter_dist.data.sources.datasets import fetch_dataset
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import is_alive, newest_owner
from tests.compare import forked_server
from tests.distributed.launch import Process, start, wait

WORDS = [
    *("recipe=control/mixed-domains", "methods=finetune,linear_probe", "seeds=0", "tune=2"),
    # Long enough to be met at work.
    *("train.epochs=12", "train.evaluate_every=12", "checkpoint.every=4"),
    *("evaluate.gates=false", "log.to=[]", "data.test_per_class=10", "data.val_fraction=0.2"),
]
PATIENCE = 240.0


def compare(folder: Path, *words: str) -> Process:
    return forked_server.compare([*words, f"compare_dir={folder}"], folder.parent)


def until(true: Callable[[], bool], what: str, process: Process | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert process is None or process.poll() is None, f"ended before {what}"
        assert time.monotonic() < end, what
        time.sleep(0.01)


def alive(run: PlannedRun) -> bool:
    owner = newest_owner(run.path) if run.path.exists() else None
    return owner is not None and is_alive(run.path, owner) is not False


def at_work(runs: list[PlannedRun], kind: str) -> bool:
    """Whether a run of this kind is on its way: a process has it, and it has saved."""
    return any(
        run.kind == kind and alive(run) and RunFiles(run.path).checkpoint_folders() for run in runs
    )


def results(folder: Path) -> dict[str, Any]:
    """Weights of every run as bytes, its figures, and what was chosen."""
    found: dict[str, Any] = {}
    for run in all_runs(Plan.read(folder), folder):
        rows = RunFiles(run.path).read_metrics()
        scores = [(row["split"], row["top1"], row["loss"]) for row in rows if "split" in row]
        weights = (RunFiles(run.path).best / "model.safetensors").read_bytes()
        found[run.title] = (scores, weights)
    for path in sorted((folder / "chosen").iterdir()):
        found[path.name] = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_killed_and_interrupted_it_comes_to_the_same_bits(tmp_path: Path) -> None:
    try:
        fetch_dataset(Data(name="mixed_domains"), print)
    except UserError as error:
        pytest.skip(str(error))
    WORDS.append(f"data.prepared={tmp_path / 'data'}")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "disturbed"
    # This one starts its fork server as it does for a user.
    words = ["--workers", "1", *WORDS, f"compare_dir={undisturbed}"]
    alone = start(["compare", *words], folder=tmp_path)

    # Killed during a trial: its runs die with it, and another command finds them free.
    command = compare(folder, "--workers", "2", *WORDS)
    until(lambda: (folder / "plan.json").is_file(), "a plan", command)
    runs = list(all_runs(Plan.read(folder), folder))
    until(lambda: at_work(runs, "trial"), "a trial at work", command)
    command.kill()
    command.wait(PATIENCE)
    until(lambda: not any(map(alive, runs)), "the end of all runs")
    begun = [run for run in runs if RunFiles(run.path).checkpoint_folders()]
    assert not all(map(_finished, begun)), "no run was killed half-way"
    other = wait(compare(undisturbed, *WORDS), PATIENCE)
    assert other.code == 2 and "is in use by another `adafilter compare`" in other.output

    # Interrupted during a final run: all save, and the command says how to go on.
    command = compare(folder, "--workers", "2", *WORDS)
    until(lambda: at_work(runs, "final"), "a final run at work", command)
    command.send_signal(signal.SIGINT)
    ended = wait(command, PATIENCE)
    assert ended.code == 75, ended.output
    assert f"stopped; go on with: adafilter compare compare_dir={folder}" in ended.output
    assert not any(map(alive, runs))
    finals = [RunFiles(run.path).read_status() for run in runs if run.kind == "final"]
    assert "stopped" in {status.get("state") for status in finals}, ended.output

    # By its folder alone; what is done is not run again.
    done = {run: len(RunFiles(run.path).read_events()) for run in runs if _finished(run)}
    ended = wait(compare(folder), PATIENCE)
    assert ended.code == 0, ended.output
    assert done and done == {run: len(RunFiles(run.path).read_events()) for run in done}
    ended = wait(alone, PATIENCE)
    assert ended.code == 0, ended.output
    assert results(folder) == results(undisturbed)
    assert not any((run.path / "checkpoints").exists() for run in runs)

    # A run that diverges stops no other, and is told of at the end.
    words = ["methods=finetune", "tune=0", "seeds=0"]
    words += ["optim.lr=10000", "optim.weight_decay=10000"]
    ended = wait(compare(tmp_path / "diverged", *WORDS, *words), PATIENCE)
    assert ended.code == 1, ended.output
    assert "failed: finetune seed 0: diverged" in ended.output


def _finished(run: PlannedRun) -> bool:
    return RunFiles(run.path).read_status().get("state") == "finished"
