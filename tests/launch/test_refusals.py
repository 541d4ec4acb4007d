"""The command where something is wrong: clear lines, exit code 2, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.launch.submit import choose_cluster
from adafilter_dist.recipe.sections.launch import Launch
from tests.launch.conftest import RECIPE, words
from tests.launch.recorded import Cluster

LOCAL = ("launch.cluster=local", "launch.nodes=1")
WORKS = "echo 'slurm-wlm 22.05.8'"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: Cluster) -> Path:
    """An empty folder to submit from."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]):
    """Submit and get the error lines: exit code 2 and not a file more than before are asserted."""

    def submit(*arguments: str) -> list[str]:
        before = sorted(place.rglob("*"))
        capsys.readouterr()
        code = main(["submit", *arguments])
        said = capsys.readouterr()
        assert code == 2, said
        assert "Traceback" not in said.err
        assert sorted(place.rglob("*")) == before
        assert all(line.startswith("error: ") for line in said.err.splitlines()), said.err
        return [line.removeprefix("error: ") for line in said.err.splitlines()]

    return submit


def program(cluster: Cluster, name: str, *lines: str) -> None:
    """A program on PATH."""
    (cluster.folder / name).unlink(missing_ok=True)
    (cluster.folder / name).write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    (cluster.folder / name).chmod(0o755)


def test_auto_is_local_where_sbatch_does_not_answer_and_says_so(no_slurm: Cluster) -> None:
    said: list[str] = []
    assert choose_cluster(Launch(), said.append) == "local"
    assert said == ["no SLURM here (sbatch does not answer): processes of this machine instead"]
    # Its programs alone, without a cluster: what Debian's packages are before they are set up.
    program(no_slurm, "sbatch", "echo 'could not establish a configuration source' >&2", "exit 1")
    assert choose_cluster(Launch(), said.append) == "local" and len(said) == 2
    program(no_slurm, "sbatch", WORKS)
    assert choose_cluster(Launch(), said.append) == "slurm" and len(said) == 2
    assert choose_cluster(Launch(cluster="local"), said.append) == "local" and len(said) == 2


@pytest.mark.slow  # prepares data
def test_slurm_without_sbatch(refused, prepared: Path) -> None:
    (line,) = refused(*words(prepared), "launch.cluster=slurm")
    assert line.startswith("launch.cluster=slurm: there is no sbatch on this machine; ")
    for verb in ("prepare", "evaluate"):
        more = () if verb == "prepare" else ("checkpoint=nowhere",)
        assert refused(verb, *words(prepared), "launch.cluster=slurm", *more)


def test_typos_are_said_all_at_once(refused) -> None:
    lines = refused("recipe=demo", "optim.lrr=1", "launch.partitoin=gpu", "seed=0,1")
    assert len(lines) == 2  # once, not for each member
    assert any("did you mean 'partition'" in line for line in lines)
    (line,) = refused("recipe=demmo")
    assert "did you mean 'demo'" in line
    (line,) = refused("trian", "recipe=demo")
    assert line.startswith("'trian': not a verb")
    assert "which recipe?" in refused()[0]
    assert "which recipe?" in refused("prepare", "optim.lr=1")[0]
    (line,) = refused("resume=nowhere")
    assert line == "nowhere: not a run folder (no recipe.yaml in it)"


@pytest.mark.slow  # prepares data
def test_two_members_that_are_the_same_run(refused, prepared: Path) -> None:
    (line,) = refused(*words(prepared), *LOCAL, "optim.lr=0.1,1.0e-1")
    assert "are the same run" in line


@pytest.mark.parametrize("sweep", [(), ("seed=0,1",)])
def test_data_that_are_not_prepared(refused, tmp_path: Path, sweep: tuple[str, ...]) -> None:
    where = f"data.prepared={tmp_path / 'nothing'}"
    lines = refused("recipe=demo", where, *LOCAL, *sweep)
    assert len(lines) == 1, lines
    assert lines[0].endswith(f"run: adafilter prepare recipe=demo {where}")
    lines = refused(*words(tmp_path / "nothing"), *LOCAL, *sweep)
    assert len(lines) == 1 and "adafilter prepare recipe=" in lines[0]


@pytest.mark.slow  # prepares data
def test_weights_that_are_not_there(refused, prepared: Path) -> None:
    missing = "model.weights=/nowhere/weights.safetensors"
    lines = refused(*words(prepared), *LOCAL, missing, "model=resnet18")
    assert len(lines) == 1 and "/nowhere/weights.safetensors" in lines[0]


@pytest.mark.slow  # prepares data
def test_more_processes_than_micro_batches(refused, prepared: Path) -> None:
    (line,) = refused(*words(prepared), *LOCAL, "launch.tasks_per_node=5")
    assert line.startswith("launch.nodes=1 x 5 processes: train.global_batch=16 holds only 4 ")


@pytest.mark.slow  # prepares data
def test_several_nodes_on_one_machine(refused, prepared: Path) -> None:
    (line,) = refused(*words(prepared), "launch.cluster=local")
    assert line.startswith("launch.nodes=2: launch.cluster=local has one")


@pytest.mark.slow  # prepares data
def test_no_space(refused, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 1 << 30, 1 << 10))
    (line,) = refused(*words(prepared), *LOCAL)
    assert "no space for the run with its checkpoints: " in line and "run_dir=PATH" in line


@pytest.mark.parametrize("sweep", [(), ("seed=0,1",)])
@pytest.mark.slow  # prepares data
def test_a_place_that_cannot_be_written(
    refused, prepared: Path, place: Path, sweep: tuple[str, ...]
) -> None:
    (place / "runs").write_text("in the way")
    lines = refused(*words(prepared), *LOCAL, *sweep)
    assert len(lines) == 1 and "cannot be written" in lines[0] and "run_dir=PATH" in lines[0]


@pytest.mark.slow  # prepares data
def test_a_disk_that_fails_while_the_code_is_copied(
    refused, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    (line,) = refused(*words(prepared), *LOCAL)
    assert "No space left on device" in line


def on_slurm(cluster: Cluster, sbatch: str) -> None:
    """A SLURM whose sbatch goes on like this when it is handed a job."""
    program(
        cluster,
        "sbatch",
        f'case "$1" in --version) {WORKS}; exit 0;; --test-only) cat >/dev/null; exit 0;; esac',
        sbatch,
    )
    program(cluster, "srun", "exit 1")


@pytest.mark.slow  # prepares data
def test_a_script_that_slurm_would_refuse(refused, prepared: Path, no_slurm: Cluster) -> None:
    program(
        no_slurm,
        "sbatch",
        f'case "$1" in --version) {WORKS}; exit 0;; esac',
        "echo 'sbatch: error: invalid partition specified: nope' >&2",
        "exit 1",
    )
    expected = ["SLURM refuses: sbatch: error: invalid partition specified: nope"]
    assert refused(*words(prepared), "launch.partition=nope") == expected
    assert refused(*words(prepared), "launch.partition=nope", "seed=0,1") == expected
    assert refused("prepare", *words(prepared), "launch.partition=nope") == expected


@pytest.mark.parametrize("more", [(), ("seed=0,1",)])
@pytest.mark.slow  # prepares data
def test_a_job_that_slurm_refuses(
    refused, prepared: Path, no_slurm: Cluster, more: tuple[str, ...]
) -> None:
    on_slurm(no_slurm, "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1")
    lines = refused(*words(prepared), *more)
    assert "QOSMaxSubmitJobPerUserLimit" in " ".join(lines)
    refused("prepare", *words(prepared))


@pytest.mark.slow  # prepares data
def test_a_run_that_was_there_is_as_it_was_where_slurm_refuses(
    prepared: Path, no_slurm: Cluster, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    on_slurm(no_slurm, "echo Submitted batch job 4711")
    assert main(["submit", *words(prepared)]) == 0
    (run,) = (place / "runs").glob("*/*")
    status = run / "status.json"
    status.write_text('{"state": "stopped", "reason": "SIGTERM", "step": 7}')
    (run / "checkpoints").mkdir()
    kept = (run / "submitted.json").read_bytes()
    program(no_slurm, "squeue", "exit 0")
    on_slurm(no_slurm, "echo 'sbatch: error: no' >&2; exit 1")
    assert main(["submit", *words(prepared)]) == 2
    assert status.read_text() == '{"state": "stopped", "reason": "SIGTERM", "step": 7}'
    assert (run / "checkpoints").is_dir() and (run / "submitted.json").read_bytes() == kept


_BLOCKS = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "submitit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from adafilter_dist.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_without_submitit_one_line_says_how_to_get_it(
    prepared: Path, place: Path, no_slurm: Cluster, more: list[str]
) -> None:
    on_slurm(no_slurm, "echo Submitted batch job 4711")
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKS, "submit", *words(prepared), *more],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "pip install 'adafilter-dist[slurm]'" in line
    assert list(place.iterdir()) == []


def test_a_dry_run_checks_only_the_words(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", f"recipe={RECIPE}", "data.prepared=/nowhere", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
    assert list(place.iterdir()) == []
