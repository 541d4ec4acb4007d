"""How many processes may share the micro-batches, here and before a job is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.errors import UserError
from adafilter_dist.launch.checks import check_world
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.shares import require_shares


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Six micro-batches."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndata: {name: imagefolder, root: pictures}\n"
        "train: {global_batch: 12, micro_batch: 2}\n"
    )
    return path


def load(file: Path, *words: str) -> Recipe:
    return load_recipe([f"recipe={file}", *words])


def refused(recipe: Recipe, world_size: int) -> str:
    """The one line of the refusal, without where it is."""
    with pytest.raises(UserError) as caught:
        require_shares(recipe, world_size, "here")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("here: ")
    return line.removeprefix("here: ")


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_more_processes_than_micro_batches(file: Path, engine: str) -> None:
    assert refused(load(file, f"engine={engine}"), 7) == (
        "train.global_batch=12 holds only 6 micro-batches of 2; start at most 6 processes, or "
        "lower train.micro_batch (it changes the numbers)"
    )


def test_uneven_shares_are_ddps_alone(file: Path) -> None:
    for world_size in range(1, 7):
        require_shares(load(file), world_size, "here")
    recipe = load(file, "engine=deepspeed")
    for world_size in (1, 2, 3, 6):
        require_shares(recipe, world_size, "here")
    for world_size in (4, 5):
        assert refused(recipe, world_size) == (
            "engine=deepspeed gives every process the same number of the 6 micro-batches; start "
            "1, 2, 3 or 6 processes, or use engine=ddp"
        )


def test_accumulation_that_does_not_follow_from_the_batches(file: Path) -> None:
    recipe = load(file, "engine=deepspeed", "engine.config={gradient_accumulation_steps: 3}")
    require_shares(recipe, 2, "here")
    assert refused(recipe, 3) == (
        "engine.config: gradient_accumulation_steps=3, but every process has 2 of the 6 "
        "micro-batches; leave it out"
    )
    recipe = load(file, "engine=deepspeed", "engine.config={gradient_accumulation_steps: auto}")
    require_shares(recipe, 3, "here")


def test_it_is_known_before_a_job_is_submitted(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = ("engine=deepspeed", "launch.gpus_per_node=0", "launch.tasks_per_node=2")
    check_world(load(file, *nodes, "launch.nodes=3"))
    with pytest.raises(UserError, match=r"^launch.nodes=2 x 2 processes: engine=deepspeed gives "):
        check_world(load(file, *nodes, "launch.nodes=2"))
    monkeypatch.chdir(tmp_path)
    here = ("launch.cluster=local", "engine=deepspeed", "launch.gpus_per_node=4")
    assert main(["submit", f"recipe={file}", *here]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: launch.nodes=1 x 4 processes: engine=deepspeed gives every ")
    assert list(tmp_path.iterdir()) == [file]
