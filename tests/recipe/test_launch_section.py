"""``launch:``: time limits as people write them, site files, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.changes import check_changes
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.recipe.sections.launch import minutes


@pytest.fixture(autouse=True)
def _nobodys_site_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {name: imagefolder, root: pictures}\n")
    return path


def load(file: Path, *words: str) -> Recipe:
    return load_recipe([f"recipe={file}", *words])


def errors(file: Path, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(file, *words)
    return str(caught.value).splitlines()


TIMES = {
    "4h": 240,
    "1.5h": 90,
    "90min": 90,
    "90 min": 90,
    "240": 240,
    "4:00:00": 240,
    "04:00:00": 240,
    "0:30:00": 30,
    "90:00": 90,
    "90:01": 91,
    "00:10": 1,
    "30s": 1,
    "90s": 2,
    "100:00:00": 6000,
    "1-12": 2160,
    "1-12:30": 2190,
    "1-12:30:30": 2191,
    "0-1": 60,
}


@pytest.mark.parametrize("text", TIMES)
def test_time_limits_in_all_spellings_unquoted_on_the_command_line_and_in_files(
    file: Path, text: str
) -> None:
    on_the_line = load(file, f"launch.time={text}")
    assert minutes(on_the_line.launch.time) == TIMES[text]
    file.write_text(file.read_text() + "seed: 1\n")
    file.write_text(file.read_text() + "launch:\n  time: " + text + "\n")
    in_file = load(file)
    assert minutes(in_file.launch.time) == TIMES[text]
    # What is kept in the run folder reads back as the same.
    file.write_text(dump_recipe(in_file))
    assert load(file) == in_file


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense", "0", "0:00:00", "-5", "4 hours 3", "1:2:3:4", "1-", ":30", "1.5", "true"),
        *("", "[4h]", "UNLIMITED", "4d"),
    ],
)
def test_what_is_no_time_limit_is_refused_in_one_line(file: Path, text: str) -> None:
    (line,) = errors(file, f"launch.time={text}")
    assert line.startswith("launch.time=") and "is not a time limit; write it like '4h'" in line


def test_other_texts_with_colons_stay_texts_and_numbers_numbers(file: Path) -> None:
    file.write_text(file.read_text() + "launch:\n  environment: {A: 1:30, B: 12, C: '0x1f'}\n")
    assert load(file).launch.environment == {"A": "1:30", "B": 12, "C": "0x1f"}
    assert load(file, "optim.lr=1.0e-2").optim.lr == 0.01


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ((), 1),
        (("launch.gpus_per_node=4",), 4),
        (("launch.gpus_per_node=4", "launch.tasks_per_node=4"), 4),
        (("launch.gpus_per_node=0",), 1),
        (("launch.gpus_per_node=0", "launch.tasks_per_node=3"), 3),
    ],
)
def test_processes_follow_from_gpus_or_are_given(
    file: Path, words: tuple[str, ...], processes: int
) -> None:
    launch = load(file, *words, "launch.nodes=2").launch
    assert (launch.processes_per_node, launch.world_size) == (processes, 2 * processes)


def test_one_process_a_gpu_it_is(file: Path) -> None:
    (line,) = errors(file, "launch.gpus_per_node=4", "launch.tasks_per_node=2")
    assert line.startswith("launch: tasks_per_node=2 with gpus_per_node=4: ")
    assert errors(file, "launch.tasks_per_node=2")  # gpus_per_node is 1 unless set
    for word in ("nodes=0", "tasks_per_node=0", "gpus_per_node=-1", "cpus_per_task=0"):
        (line,) = errors(file, f"launch.{word}")
        assert line.startswith(f"launch.{word}: ")


def test_further_options_of_sbatch(file: Path) -> None:
    launch = load(
        file, "launch.additional_parameters={reservation: course, exclusive: true}"
    ).launch
    assert launch.additional_parameters == {"reservation": "course", "exclusive": True}
    (line,) = errors(file, "launch.additional_parameters={--reservation: course}")
    assert line.endswith("additional_parameters: '--reservation': leave out -- and =")
    for name in ("requeue", "no-requeue", "no_requeue"):
        (line,) = errors(file, f"launch.additional_parameters={{{name}: true}}")
        assert f"{name}: every job can be requeued" in line
    (line,) = errors(file, "launch.additional_parameters={ntasks-per-node: 4}")
    assert line.endswith("ntasks-per-node: that is launch.tasks_per_node")
    (line,) = errors(file, "launch.additional_parameters={output: my.log}")
    assert "logs lie beside their run" in line


def test_names_and_sizes_may_be_all_digits(file: Path) -> None:
    launch = load(file, "launch.mem=64000", "launch.account=4711", "launch.qos=1").launch
    assert (launch.mem, launch.account, launch.qos) == ("64000", "4711", "1")


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Path, Path]:
    """The user's folder of site files, and that of the recipes here."""
    mine, beside = tmp_path / "config" / "adafilter", tmp_path / "recipes" / "launch"
    for folder in (mine, beside):
        folder.mkdir(parents=True)
    (beside / "here.yaml").write_text("partition: beside\ntime: 8:00:00\nnodes: 2\n")
    return mine, beside


def test_the_users_own_site_file_comes_before_the_recipes(
    file: Path, sites: tuple[Path, Path]
) -> None:
    launch = load(file, "launch=@here").launch
    assert (launch.partition, launch.time, launch.nodes) == ("beside", "8:00:00", 2)
    (sites[0] / "here.yaml").write_text("partition: mine\n")
    launch = load(file, "launch=@here").launch
    assert (launch.partition, launch.time, launch.nodes) == ("mine", "4h", 1)


def test_without_xdg_config_home_it_is_the_home_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config" / "adafilter"
    folder.mkdir(parents=True)
    (folder / "here.yaml").write_text("partition: home\n")
    assert load(file, "launch=@here").launch.partition == "home"


def test_words_are_applied_in_their_order(file: Path, sites: tuple[Path, Path]) -> None:
    assert load(file, "launch=@here", "launch.partition=line").launch.partition == "line"
    assert load(file, "launch.partition=line", "launch=@here").launch.partition == "beside"
    # What the site does not say stays.
    assert load(file, "launch.account=a", "launch=@here").launch.account == "a"
    (sites[0] / "other.yaml").write_text("partition: other\n")
    launch = load(file, "launch=@here", "launch=@other").launch
    assert (launch.partition, launch.nodes) == ("other", 2)


def test_a_recipe_file_may_name_a_site(file: Path, sites: tuple[Path, Path]) -> None:
    file.write_text(file.read_text() + 'launch: "@here"\n')
    assert load(file).launch.partition == "beside"
    assert load(file, "launch.partition=line").launch.partition == "line"
    child = file.with_name("child.yaml")
    child.write_text("base: mine\nlaunch: {nodes: 3}\n")
    launch = load(child).launch
    assert (launch.partition, launch.nodes) == ("beside", 3)
    child.write_text("base: child2\nlaunch: '@here'\n")
    file.with_name("child2.yaml").write_text(
        "name: c\ndata: {name: imagefolder, root: p}\nlaunch: {nodes: 5, account: a}\n"
    )
    launch = load(child).launch
    assert (launch.partition, launch.nodes, launch.account) == ("beside", 2, "a")


def test_an_unknown_site_names_the_nearest_and_where_it_was_looked_for(
    file: Path, sites: tuple[Path, Path]
) -> None:
    (line,) = errors(file, "launch=@heer")
    assert line.startswith(f"launch=@heer: no site file {sites[0] / 'heer.yaml'}, nor launch/heer")
    assert "(did you mean 'here'?)" in line and "example" in line
    (line,) = errors(file, "launch=here")
    assert "launch=@here" in line


def test_an_unknown_key_of_a_site_file_is_named_with_the_file(
    file: Path, sites: tuple[Path, Path]
) -> None:
    path = sites[0] / "bad.yaml"
    path.write_text("partitoin: gpu\nlaunch: {nodes: 2}\ntime: 8h\n")
    first, second = errors(file, "launch=@bad")
    assert first.startswith(f"{path}: partitoin: unknown key (did you mean 'partition'?); allowed")
    assert second.startswith(f"{path}: launch: unknown key")
    path.write_text("- partition\n")
    (line,) = errors(file, "launch=@bad")
    assert line.startswith(f"{path}: ")
    path.write_text("time: soon\n")
    (line,) = errors(file, "launch=@bad")
    assert line.startswith("launch.time=soon: is not a time limit")


def test_the_shipped_site_file_is_one(file: Path) -> None:
    launch = load(file, "launch=@example").launch
    assert (launch.time, launch.gpu_request, launch.world_size) == ("8h", "gres", 4)


def test_nothing_of_it_is_the_runs_identity_and_all_of_it_may_change(
    file: Path, sites: tuple[Path, Path]
) -> None:
    old = load(file)
    new = load(
        file,
        *("launch=@example", "launch.nodes=2", "launch.time=8h", "launch.cluster=local"),
        *("launch.environment={A: 1}", "launch.python=python3", "launch.max_restarts=9"),
    )
    assert run_hash(old) == run_hash(new)
    verdict = check_changes(old, new)
    assert verdict.changed and verdict.changes["launch.time"] == ("4h", "8h")
    assert verdict.recipe.launch == new.launch
    assert not check_changes(new, new).changed
