"""DeepSpeed where it is missing: one line before anything is begun; where it is not asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.errors import UserError
from adafilter_dist.launch.checks import Checks
from adafilter_dist.launch.script import begin
from adafilter_dist.recipe import load_recipe

LINE = "engine=deepspeed: DeepSpeed is not installed: pip install 'adafilter-dist[deepspeed]'"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe whose data are not prepared, on a machine without DeepSpeed."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for key in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "name: mine\ndata: {name: imagefolder, root: pictures}\nengine: {device: cpu}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [["train"], ["train", "--check"], ["submit", "launch.cluster=local"]],
    ids=["train", "check", "submit"],
)
def test_one_line_says_how_to_get_it(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([*words, "recipe=mine.yaml", "engine=deepspeed"]) == 2
    assert capsys.readouterr().err == f"error: {LINE}\n"
    assert [path.name for path in here.iterdir()] == ["mine.yaml"]
    assert main([*words, "recipe=mine.yaml"]) == 2
    assert "DeepSpeed" not in capsys.readouterr().err


def test_a_batch_script_says_it_before_its_ranks_are_started(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.raises(UserError, match=r"^engine=deepspeed: DeepSpeed is not installed"):
        begin(["recipe=mine.yaml", "engine=deepspeed"], (), 1)
    assert [path.name for path in here.iterdir()] == ["mine.yaml"]


def test_where_jobs_have_a_python_of_their_own_this_one_need_not_have_it(here: Path) -> None:
    words = ["recipe=mine.yaml", "engine=deepspeed"]
    with pytest.raises(UserError, match=r"^engine=deepspeed: DeepSpeed is not installed"):
        Checks().check(load_recipe(words), here / "run")
    with pytest.raises(UserError, match="nothing is prepared"):  # it came past DeepSpeed
        Checks().check(load_recipe([*words, "launch.python=apptainer exec python"]), here / "run")


_DDP = """\
import sys
import torch
import adafilter_dist.training.attempt, adafilter_dist.training.dry_run
from adafilter_dist.distributed import join_world
from adafilter_dist.engine import build_engine
from adafilter_dist.recipe import load_recipe

with join_world(load_recipe(sys.argv[1:])) as world:
    model = torch.nn.Linear(2, 2)
    groups = [{"name": "all", "params": list(model.parameters()), "lr": 0.1, "weight_decay": 0}]
    engine = build_engine(model, groups, load_recipe(sys.argv[1:]), world)
    engine.backward(engine.forward(torch.ones(2, 2)).sum())
    assert engine.step(1.0)
assert "torch" in sys.modules and "deepspeed" not in sys.modules
"""


@pytest.mark.slow
def test_ddp_does_not_import_it(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DDP, "recipe=mine.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
