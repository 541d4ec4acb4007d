"""The scripts of slurm/ and what they run, as far as that can be seen without SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.launch.script import LinkFlag, begin
from adafilter_dist.recipe import load_recipe
from tests.distributed.launch import ROOT

RECIPE = ROOT / "tests" / "cluster" / "run.yaml"
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this process is the batch shell of a job on two nodes."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_scripts_that_bash_understands() -> None:
    assert [script.name for script in SCRIPTS] == ["node.sbatch", "nodes.sbatch"]
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_job_without_gpus_says_what_to_do(script: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if k != "RANKS" and not k.startswith("SLURM_")}
    ended = subprocess.run(["bash", script], env=kept, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no GPUs: ") and "RANKS=N" in ended.stderr


def test_what_the_two_scripts_share_is_the_same() -> None:
    one, several = (script.read_text().splitlines() for script in SCRIPTS)
    shared = [line for line in one if line in several]
    for begins in ("#SBATCH --signal=B:USR2@120", "trap 'hear SIG", "hear()", "while wait"):
        assert any(line.startswith(begins) for line in shared), begins
    assert one[-4:] == several[-4:]


def test_the_flag_is_raised_by_a_link(tmp_path: Path) -> None:
    flag = LinkFlag(str(tmp_path / "stop"))
    assert not flag.raised
    (tmp_path / "stop").symlink_to("SIGUSR2")
    assert flag.raised and flag.reason == "SIGUSR2"
    assert not LinkFlag(None).raised


def test_a_restart_goes_on_with_the_run_it_began(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = job / "mine.yaml"
    shutil.copy(RECIPE, recipe)
    begin([f"recipe={recipe}", "resume=never"], (), 2)
    kept = job / "runs" / "jobs" / "77.yaml"
    first = load_recipe([f"recipe={kept}"])
    assert (Path(first.resume) / "submitted.json").is_file()
    assert (first.launch.nodes, first.launch.world_size) == (2, 4)
    recipe.write_text(recipe.read_text().replace("lr: 0.005", "lr: 0.5"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    begin([f"recipe={recipe}", "resume=never"], (), 2)
    assert load_recipe([f"recipe={kept}"]) == first
    assert load_recipe([f"recipe={Path(first.resume) / 'recipe.yaml'}"]).optim.lr == 0.005


def test_mistakes_end_before_torchrun(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="comma lists"):
        begin([f"recipe={RECIPE}", "optim.lr=0.1,0.2"], (), 2)
    with pytest.raises(UserError, match="at most 4 processes"):
        begin([f"recipe={RECIPE}"], (), 8)
    assert not (job / "runs").exists()
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(UserError, match="sbatch"):
        begin([f"recipe={RECIPE}"], (), 2)
