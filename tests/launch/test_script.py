"""The sbatch script, byte for byte: what is submitted changes only where a review sees it.

    ADAFILTER_RENEW=1 .venv/bin/python -m pytest tests/launch/test_script.py

writes the golden files anew; look at what git diff shows of them.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.identity import run_dir
from tests.launch.recorded import Cluster

GOLDEN = Path(__file__).parent / "golden"
CLONE = Path(__file__).parents[2]
RENEW = "ADAFILTER_RENEW=1 .venv/bin/python -m pytest tests/launch/test_script.py"
RECIPE = """\
name: birds
data: {name: imagefolder, root: /data/birds}
train: {global_batch: 256, micro_batch: 16}
"""
CASES = {
    "one_node": ["launch.gpus_per_node=4", "launch.partition=gpu", "launch.time=8h"],
    "two_nodes_gres": [
        *("launch.nodes=2", "launch.gpus_per_node=8", "launch.gpu_request=gres"),
        *("launch.gpu_type=a100", "launch.cpus_per_task=12", "launch.mem=200G"),
        *("launch.account=vision", "launch.qos=low", "launch.partition=preempt"),
        *("launch.constraint=ib", "launch.exclude=n[3,7-9]", "launch.time=1-12:00:00"),
        *("launch.signal_before=5min", "launch.mail_user=me@example.org"),
        'launch.mail_type="END,FAIL"',
        "launch.setup=[module load cuda, conda activate birds]",
        "launch.python=apptainer exec --nv birds.sif python",
        "launch.environment={NCCL_DEBUG: INFO, GREETING: it's me}",
        "launch.srun_args=[--mpi=none]",
        "launch.additional_parameters={reservation: course, exclusive: true, hold: false}",
    ],
    "sweep": ["launch.gpu_request=gpus_per_task", "launch.parallel=2", "optim.lr=0.1,0.2",
              "seed=0,1,2"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: Cluster) -> Path:
    """A folder with the recipe, on a machine without SLURM."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("birds.yaml").write_text(RECIPE)
    return tmp_path / "here"


def compare(name: str, script: str, place: Path) -> None:
    """The golden file against a script, with placeholders for what differs between machines."""
    kept = [word for word in CASES[name] if "," not in word or "[" in word or '"' in word]
    run = place / run_dir(load_recipe(["recipe=birds.yaml", *kept]))
    parents = [path for path in script.split() if "/sweep-" in path]
    if name == "sweep":
        sweep = parents[0][parents[0].index("/") :].partition("/jobs/")[0]
        script = script.replace(sweep, "@SWEEP@")
    script = script.replace(str(run), "@RUN@").replace(str(place), "@HERE@")
    script = script.replace(sys.executable, "@PYTHON@")
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("ADAFILTER_RENEW") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(script)
    expected = golden.read_text()
    changed = difflib.unified_diff(
        expected.splitlines(), script.splitlines(), str(golden), "as it is now", lineterm=""
    )
    if script != expected:
        pytest.fail("\n".join([*changed, "", f"if that is meant: {RENEW}"]), pytrace=False)


@pytest.mark.parametrize("name", CASES)
def test_what_is_submitted(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert main(["submit", "recipe=birds.yaml", *CASES[name], "--dry-run"]) == 0
    compare(name, capsys.readouterr().out, place)
    assert sorted(place.rglob("*")) == before


@pytest.mark.slow
def test_by_the_real_command_of_a_clone(place: Path) -> None:
    shim = [sys.executable, str(CLONE / "launch" / "submit.py")]
    done = subprocess.run(
        [*shim, "recipe=birds.yaml", *CASES["one_node"], "--dry-run"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    compare("one_node", done.stdout, place)


def test_bash_takes_every_script() -> None:
    for name in CASES:
        text = (GOLDEN / f"{name}.sbatch").read_text()
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [[], ["seed=0,1"]])
def test_percent_signs_of_a_path_are_no_patterns(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    folder = tmp_path / "50%j of %t%A_%a"
    folder.mkdir()
    (folder / "birds.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    assert main(["submit", "recipe=birds.yaml", "--dry-run", *words]) == 0
    script = capsys.readouterr().out
    job = "%A_%a" if words else "%j"
    doubled = str(folder).replace("%", "%%")
    assert re.search(rf"^#SBATCH --output='{re.escape(doubled)}/.*/{job}_0_log.out'$", script, re.M)
    # srun itself doubles wrongly, so it stands in the folder.
    assert re.search(rf"^cd '{re.escape(str(folder))}/", script, re.M)
    assert re.search(rf"^srun .*--output {job}_%t_log.out ", script, re.M)
    # What is no pattern stays as it is.
    assert re.search(rf"-m adafilter_dist.launch.percent '{re.escape(str(folder))}/", script)


@pytest.mark.parametrize(("name", "shown"), [("a\\b", "\\"), ("two\nlines", "\\n")])
def test_paths_that_slurm_cannot_write_to_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    shown: str,
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "birds.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path / name)
    assert main(["submit", "recipe=birds.yaml", "--dry-run"]) == 2
    assert f"cannot write logs to a path with {shown} in it" in capsys.readouterr().err


def test_paths_with_spaces_are_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "birds.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    assert main(["submit", "recipe=birds.yaml", "--dry-run"]) == 0
    script = capsys.readouterr().out
    for line in script.splitlines():
        if "my runs" in line:
            assert line.count("'") >= 2, line
