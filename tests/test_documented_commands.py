"""The commands in README, docs, recipes and batch scripts: each is one that would start."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from adafilter_dist.__main__ import VERBS
from adafilter_dist.launch.sweep import expand
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.shares import require_job_shares, require_shares

CLONE = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(CLONE).as_posix()
    for pattern in ("README.md", "docs/*.md", "recipes/**/*.yaml", "slurm/*.sbatch")
    for path in CLONE.glob(pattern)
)
_COMMAND = re.compile(
    r"^(?:RANKS=\d+ )?(?:adafilter|torchrun .*-m adafilter_dist|python launch/submit\.py|sbatch) "
)
_PLACEHOLDER = re.compile(r"recipe=(NAME|\.\.\.|path/)|\.\.\.")


@dataclass(frozen=True)
class Command:
    """One command of a page: its verb, the words behind it, and the processes it starts."""

    line: str
    verb: str
    words: list[str]
    world_size: int | None  # None: as launch: says


def commands(text: str) -> list[Command]:
    """The commands in a page that name a recipe, in order."""
    bare = "\n".join(line.lstrip(" #").rstrip() for line in text.splitlines())
    lines = re.sub(r"\\\n\s*", "", bare).splitlines()
    found = [_command(line) for line in lines if _COMMAND.match(line)]
    return [command for command in found if any(w.startswith("recipe=") for w in command.words)]


def _command(line: str) -> Command:
    if _PLACEHOLDER.search(line):
        return Command(line, "", [], None)
    words = shlex.split(line.strip("`"), comments=True)
    if words[0] == "adafilter":
        own = {"submit": None}
        return Command(line, words[1], words[2:], own.get(words[1], 1))
    if words[0] == "python":
        return Command(line, "submit", words[2:], None)
    if words[0] == "torchrun":
        at = words.index("adafilter_dist")
        return Command(line, words[at + 1], words[at + 2 :], _torchrun(words[1:at]))
    at = next(n for n, word in enumerate(words) if word.endswith(".sbatch"))
    return Command(line, "train", words[at + 1 :], _sbatch(words[:at]))


def _torchrun(options: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--nproc-per-node", type=int, default=1)
    known, _ = parser.parse_known_args(options)
    return int(known.nnodes * known.nproc_per_node)


def _sbatch(options: list[str]) -> int:
    """Ranks of slurm/*.sbatch: RANKS, else its GPUs, on each node."""
    ranks = re.match(r"RANKS=(\d+)", options[0])
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=1)
    known, _ = parser.parse_known_args(options)
    return int(known.nodes) * (int(ranks[1]) if ranks else int(known.gpus_per_node))


ALL = [(page, command) for page in PAGES for command in commands((CLONE / page).read_text())]


def test_the_pages_have_commands_of_every_kind() -> None:
    starts = {command.line.split()[0] for _, command in ALL}
    assert starts >= {"adafilter", "torchrun", "python", "sbatch", "RANKS=2"}
    assert len(ALL) > 50


@pytest.mark.parametrize(
    ("page", "command"), ALL, ids=[f"{page}-{number}" for number, (page, _) in enumerate(ALL)]
)
def test_every_command_has_a_recipe_and_processes_that_go_together(
    page: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = tmp_path / "adafilter"
    sites.mkdir()
    shutil.copy(CLONE / "recipes" / "launch" / "example.yaml", sites / "mysite.yaml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    monkeypatch.chdir(tmp_path)
    assert command.verb in VERBS
    words = [word for word in command.words if "=" in word and not word.startswith("--")]
    for member in expand(words):
        recipe = load_recipe(member.words)
        if command.world_size is None:
            require_job_shares(recipe)
        else:
            require_shares(recipe, command.world_size, command.line)
