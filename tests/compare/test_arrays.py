"""The arrays of a comparison: their scripts, and final runs that have nothing to choose from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.compare.array_job import ArrayJob
from adafilter_dist.compare.plan import Plan, final_run
from adafilter_dist.compare.request import read_request
from adafilter_dist.errors import UserError
from adafilter_dist.launch.submit import job_for
from adafilter_dist.run.files import RunFiles

WORDS = ["recipe=control/mixed-domains", "methods=finetune,adafilter", "seeds=0..2", "tune=2"]


def member(plan: Plan, folder: Path, kind: str, number: int) -> ArrayJob:
    run = final_run(folder, "finetune", number)
    job = job_for(plan.contenders[0].recipe.launch, "train", [], run, folder)
    return ArrayJob(**vars(job), comparison=folder, kind=kind, contender="finetune", number=number)


def test_the_scripts_are_two_arrays_of_which_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["launch.cluster=slurm", "launch.additional_parameters={dependency: 'after:7'}"]
    assert main(["submit", "compare", *WORDS, *more, "--dry-run"]) == 0
    trials, finals = capsys.readouterr().out.split("#!/bin/bash")[1:]
    assert "#SBATCH --array=0-3%4\n" in trials and "--dependency=after:7\n" in trials
    assert "#SBATCH --array=0-5%6\n" in finals
    assert "--dependency=after:7,afterany:TRIALS\n" in finals
    assert not (tmp_path / "runs").exists()


def test_a_member_knows_its_recipe_from_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    plan = read_request(WORDS).plan
    plan.write(tmp_path)
    trial = pickle.loads(pickle.dumps(member(plan, tmp_path, "trial", 1))).recipe()
    assert trial.optim.lr == plan.contender("finetune").settings(plan.design[1])["optim.lr"]

    # A final run whose trials are not over fails, and its folder says why.
    final = member(plan, tmp_path, "final", 2)
    assert final.run is not None
    final.run.mkdir(parents=True)
    with pytest.raises(UserError, match="trial 0 is not over"):
        final.recipe()
    status = RunFiles(final.run).read_status()
    assert status["state"] == "failed" and "trial 0 is not over" in status["reason"]
