"""How many processes may share the micro-batches, here and before a job is submitted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.shares import require_job_shares, require_shares


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
        "train.global_batch=12 holds only 6 micro-batches of 2; start "
        + ("at most 6" if engine == "ddp" else "1, 2, 3 or 6")
        + " processes, or set train.global_batch=14 (it changes the numbers)"
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
    require_job_shares(load(file, *nodes, "launch.nodes=3"))
    with pytest.raises(UserError, match=r"^launch.nodes=2 x 2 processes: engine=deepspeed gives "):
        require_job_shares(load(file, *nodes, "launch.nodes=2"))
    monkeypatch.chdir(tmp_path)
    here = ("launch.cluster=local", "engine=deepspeed", "launch.gpus_per_node=4")
    assert main(["submit", f"recipe={file}", *here]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: launch.nodes=1 x 4 processes: engine=deepspeed gives every ")
    assert list(tmp_path.iterdir()) == [file]


def job(file: Path, *words: str) -> str:
    """The one line that refuses the job."""
    with pytest.raises(UserError) as caught:
        require_job_shares(load(file, *words))
    (line,) = str(caught.value).splitlines()
    return line


def set_words(line: str) -> list[list[str]]:
    """The keys that a refusal says to set, once for each way out."""
    ways = re.findall(r"\bset ((?:[a-z_.]+=\d+ ?)+)", line)
    return [way.split() for way in ways]


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
@pytest.mark.parametrize("gpus", [0, 1, 3, 4, 5, 16])
@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 40])
def test_what_a_refusal_says_to_set_works(file: Path, engine: str, gpus: int, nodes: int) -> None:
    tasks = 2 if not gpus else "null"
    words = [
        *("train.global_batch=48", "train.micro_batch=4", f"engine={engine}"),
        *(f"launch.gpus_per_node={gpus}", f"launch.tasks_per_node={tasks}"),
        f"launch.nodes={nodes}",
    ]
    world_size = nodes * (gpus or 2)
    works = world_size <= 12 and (engine == "ddp" or 12 % world_size == 0)
    if works:
        require_job_shares(load(file, *words))
        return
    line = job(file, *words)
    ways = set_words(line)
    assert len(ways) == (2 if world_size > 12 else 1)
    for way in ways:
        require_job_shares(load(file, *words, *way))


def test_the_refusal_of_a_job_names_the_keys(file: Path) -> None:
    batches = ("train.global_batch=256", "train.micro_batch=32")
    line = job(file, *batches, "launch.nodes=2", "launch.gpus_per_node=8")
    assert line == (
        "launch.nodes=2 x 8 processes: train.global_batch=256 holds only 8 micro-batches of 32; "
        "set launch.nodes=1, or set train.micro_batch=16 (it changes the numbers)"
    )


def test_a_dry_run_checks_the_shares_of_every_run(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["submit", f"recipe={file}", "--dry-run", "launch.gpus_per_node=4"]
    assert main([*words, "launch.nodes=2", "train.micro_batch=2,1,3", "train.epochs=2"]) == 2
    assert main([*words, "launch.nodes=2", "train.micro_batch=2,3"]) == 2
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert [line.partition(";")[0] for line in lines] == [
        "error: launch.nodes=2 x 4 processes: train.global_batch=12 holds only "
        f"{12 // size} micro-batches of {size}"
        for size in (2, 3)
    ]
    assert main([*words, "launch.cluster=local", "launch.nodes=2", "train.global_batch=48"]) == 2
    assert "launch.cluster=local has one" in capsys.readouterr().err
    assert main([*words, "launch.nodes=1"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
