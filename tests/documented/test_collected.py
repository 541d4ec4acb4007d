"""Every command of the pages is tried or marked; what can be told without running it is right."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from adafilter_dist.__main__ import VERBS, main
from adafilter_dist.compare.request import OWN_WORDS
from adafilter_dist.launch import checks
from adafilter_dist.launch.sweep import expand
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.identity import numbers_of
from adafilter_dist.recipe.shares import require_job_shares, require_shares
from tests.documented.marks import MARKS, mark_of
from tests.documented.pages import CLONE, Block, Command, by_page, collected, taken_apart
from tests.documented.ways import Way, way_of

COMMANDS, BLOCKS = collected()
BENCHMARKS = CLONE / "benchmarks"


def untried(commands: list[Command], blocks: list[Block]) -> list[str]:
    """A line, and what to do, for each that is neither tried nor marked."""
    places: list[Command | Block] = [command for command in commands if not way_of(command)]
    places += [b for b in blocks if not (b.is_python or b.settings or mark_of(b))]
    return [
        f"{place}\n  no test runs this: teach tests/documented/ways.py how, "
        "or give the reason in MARKS, tests/documented/marks.py"
        for place in places
    ]


def of(*ways: Way) -> list[object]:
    """The commands of these ways, each named after its place."""
    return [
        pytest.param(
            command,
            id=re.sub(r"[^\w.:=@-]+", " ", f"{command.page} {command.text}"),
            # The recipes of all contenders are resolved.
            marks=pytest.mark.slow if command.words[1:2] == ["compare"] else (),
        )
        for command in COMMANDS
        if way_of(command) in ways
    ]


def test_every_command_is_tried_or_marked() -> None:
    lines = untried(COMMANDS, BLOCKS)
    assert not lines, "\n".join(lines)


def test_every_mark_marks_something() -> None:
    used = {mark_of(place) for place in (*COMMANDS, *BLOCKS)}
    idle = sorted(set(MARKS) - used)
    assert not idle, f"nothing on the pages any more; remove from MARKS: {idle}"


def test_there_are_commands_of_every_way() -> None:
    assert {way_of(command) for command in COMMANDS} == set(Way)
    programs = {command.program for command in COMMANDS}
    assert programs >= {"adafilter", "torchrun", "python", "sbatch", "make", "pip", "pytest"}
    pages = {command.page for command in COMMANDS}
    assert pages >= {"README.md", "CONTRIBUTING.md", "recipes/demo.yaml", "slurm/node.sbatch"}
    assert pages >= {"docs/slurm.md", "launch/submit.py", "benchmarks/floor.py"}
    assert {f"adafilter {verb} --help" for verb in VERBS} - pages <= {
        "adafilter prepare --help"  # its examples stand in README
    }
    assert len(COMMANDS) > 150


PAGE = """\
Text with `adafilter train recipe=demo seed=3` in it, and `adafilter status`.

    $ adafilter prepare recipe=demo   # a comment
    torchrun --standalone --nproc-per-node=2 \\
        -m adafilter_dist train recipe=demo
    FOO=1 make demo && make nothing
    cancel  scancel 17

    kubectl apply -f run.yaml

Then

```python
import adafilter_dist
```

    docker run image
"""


def test_a_page_is_taken_apart() -> None:
    commands, blocks = taken_apart("new.md", list(enumerate(PAGE.splitlines(), 1)))
    assert [str(command) for command in commands] == [
        "new.md:3: adafilter prepare recipe=demo",
        "new.md:4: torchrun --standalone --nproc-per-node=2 -m adafilter_dist train recipe=demo",
        "new.md:6: FOO=1 make demo",
        "new.md:6: make nothing",
        "new.md:7: scancel 17",
        "new.md:1: adafilter train recipe=demo seed=3",
    ]
    assert [str(block) for block in blocks] == [
        "new.md:9: kubectl apply -f run.yaml",
        "new.md:14: import adafilter_dist",
        "new.md:17: docker run image",
    ]
    assert [block.is_python for block in blocks] == [False, True, False]


def test_a_new_command_that_is_neither_is_named_with_what_to_do() -> None:
    commands, blocks = taken_apart("new.md", list(enumerate(PAGE.splitlines(), 1)))
    lines = untried(commands, blocks)
    assert [line.splitlines()[0] for line in lines] == [
        "new.md:7: scancel 17",
        "new.md:9: kubectl apply -f run.yaml",
        "new.md:17: docker run image",
    ]
    assert "tests/documented/marks.py" in lines[0]


# Recipes, as they are shipped: they load, and ranks and micro-batches go together.

NAMES_A_RECIPE = [
    command
    for command in COMMANDS
    if way_of(command) in (Way.PLAYED, Way.DRY, Way.BATCH) and "recipe=" in command.text
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages name: a site, a DeepSpeed file, a run."""
    sites = tmp_path / "adafilter"
    sites.mkdir()
    shutil.copy(CLONE / "recipes" / "launch" / "example.yaml", sites / "mysite.yaml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    run = tmp_path / "runs" / "food101" / "1a2b3c4d"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(["recipe=food101"])))
    (run / "status.json").write_text('{"state": "stopped"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(command: Command) -> tuple[str, list[str], int | None]:
    """Verb, words of the recipe, and processes of a command; None: as launch: says."""
    words = command.words
    ranks: int | None = 1
    if words[0] == "torchrun":
        at = words.index("adafilter_dist")
        parser = argparse.ArgumentParser()
        parser.add_argument("--nnodes", type=int, default=1)
        parser.add_argument("--nproc-per-node", type=int, default=1)
        known, _ = parser.parse_known_args(words[1:at])
        verb, rest, ranks = words[at + 1], words[at + 2 :], known.nnodes * known.nproc_per_node
    elif words[0] == "sbatch":
        at = next(n for n, word in enumerate(words) if word.endswith(".sbatch"))
        verb, rest, ranks = "train", words[at + 1 :], ranks_of_job(command.text, words[1:at])
    elif words[0] == "python":
        verb, rest, ranks = "submit", words[2:], None
    else:
        verb, rest = words[1], words[2:]
        ranks = None if verb == "submit" else 1
    if "compare" in (verb, *rest):
        rest = [word for word in rest if word.partition("=")[0] not in OWN_WORDS]
    rest = [word.replace("=NAME", "=food101") for word in rest]
    return verb, [word for word in rest if "=" in word and not word.startswith("--")], ranks


def ranks_of_job(text: str, options: list[str]) -> int:
    """Ranks of slurm/*.sbatch: RANKS, else its GPUs, on each node. Unknown options end it."""
    ranks = re.match(r"RANKS=(\d+) ", text)
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=1)
    for name in ("--partition", "--account", "--cpus-per-task"):
        parser.add_argument(name)
    known = parser.parse_args(options)
    return int(known.nodes) * (int(ranks[1]) if ranks else int(known.gpus_per_node))


@pytest.mark.parametrize("command", NAMES_A_RECIPE, ids=str)
def test_recipe_and_processes_go_together(command: Command, site: Path) -> None:
    verb, words, ranks = started(command)
    assert verb in VERBS
    for member in expand(words):
        recipe = load_recipe(member.words)
        if ranks is None:
            require_job_shares(recipe)
        else:
            require_shares(recipe, ranks, command.text)
    for word in command.words:
        assert not word.endswith(".sbatch") or (CLONE / word).is_file()


@pytest.mark.parametrize("page", by_page())
def test_commands_of_a_page_mean_the_same_data(page: str) -> None:
    """Who copies one after the other trains on what was prepared: data.root in all or none."""
    roots: dict[str, dict[str | None, Command]] = {}
    for command in by_page()[page]:
        words = {key: value for key, _, value in (w.partition("=") for w in command.words)}
        tried = way_of(command) in (Way.PLAYED, Way.DRY, Way.BATCH)
        if tried and "recipe" in words and words["recipe"] != "NAME" and "--cfg" not in words:
            recipe = words["recipe"] + (f" over={words['over']}" if "over" in words else "")
            roots.setdefault(recipe, {}).setdefault(words.get("data.root"), command)
    for recipe, places in roots.items():
        assert len(places) == 1, f"data of recipe={recipe}: " + "; ".join(map(str, places.values()))


@pytest.fixture(scope="module")
def each_network_once() -> Iterator[None]:
    """Comparisons of many pages build the same networks, which takes most of their time."""
    require, taken = checks.require_network, set[str]()

    def once(recipe: Recipe) -> None:
        numbers = numbers_of(recipe)
        own = json.dumps([numbers["model"], numbers["method"], recipe.data.resolution])
        if own not in taken:
            require(recipe)
            taken.add(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "require_network", once)
        yield


@pytest.mark.usefixtures("each_network_once")
@pytest.mark.parametrize("command", of(Way.DRY))
def test_it_would_be_submitted(
    command: Command,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script, or the size of the comparison, is printed by the command as it stands."""
    more = [] if "--dry-run" in command.words else ["--dry-run"]
    program, *words = command.words
    if program == "adafilter":
        code: object = main([*words, *more])
    else:
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(CLONE / words[0]), run_name="__main__")
        code = left.value.code
    printed = capsys.readouterr()
    assert code == 0, f"{command}\n{printed.err}"
    assert "#SBATCH --" in printed.out or re.search(r"^runs +\d+ methods", printed.out, re.M)


# Forms, targets, packages, options


@pytest.mark.parametrize("command", of(Way.USAGE))
def test_a_form_names_verbs_and_options_of_the_help(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.words
    verb = words[1] if words[0] == "adafilter" else "submit"
    assert verb in VERBS
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    known = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    assert set(re.findall(r"--[a-z-]+", command.text)) <= set(known)


@pytest.mark.parametrize("command", of(Way.TARGET))
def test_make_has_the_target(command: Command) -> None:
    words = [word.replace("PATH", str(CLONE)) for word in command.words]
    done = subprocess.run([*words, "-n"], cwd=CLONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = {Requirement(line).name for lines in extras.values() for line in lines}
    for command in COMMANDS:
        if way_of(command) is not Way.PACKAGES:
            continue
        parser = argparse.ArgumentParser()
        parser.add_argument("-c", type=Path)
        parser.add_argument("-e", "--exact", action="store_true")
        parser.add_argument("packages", nargs="+")
        given = parser.parse_args(command.words[command.words.index("install") + 1 :])
        assert given.c is None or (CLONE / given.c).is_file(), command
        for package in given.packages:
            own = re.fullmatch(r"\.(?:\[(.+)\])?", package)
            if own:
                assert set((own[1] or "dev").split(",")) <= set(extras), command
            else:
                assert Requirement(package).name in optional, command


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.settings], ids=str)
def test_words_of_a_recipe_load(block: Block) -> None:
    stage = "engine.zero_stage=3" if "stage3" in block.text else "engine.zero_stage=2"
    load_recipe(["recipe=food101", "engine=deepspeed", stage, *block.settings])


class Parsed(Exception):
    """The options were understood, and nothing was measured."""


@pytest.mark.parametrize("command", of(Way.OPTIONS))
def test_a_benchmark_takes_the_options(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command.words
    at = next(n for n, word in enumerate(words) if word.startswith("benchmarks/"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # or checkpoint.py starts itself again
    monkeypatch.setattr(sys, "argv", words[at:])
    if words[at].endswith("gpu_step.py"):  # it has words of a recipe and no options
        spec = importlib.util.spec_from_file_location("gpu_step", CLONE / words[at])
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "gpu_step", module)
        spec.loader.exec_module(module)
        module.recipe_of(tmp_path, words[at + 1 :])
        return
    from bench import settings  # of benchmarks/; it checks more than argparse does

    known, understood = argparse.ArgumentParser.parse_args, settings.parse

    def parse_args(self: argparse.ArgumentParser, args: object = None) -> None:
        raise Parsed(known(self, args))  # type: ignore[call-overload]

    def parse(*args: object, **named: object) -> None:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", known)
        raise Parsed(understood(*args, **named))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(settings, "parse", parse)
    with redirect_stdout(io.StringIO()), pytest.raises(Parsed):
        runpy.run_path(str(CLONE / words[at]), run_name="__main__")
