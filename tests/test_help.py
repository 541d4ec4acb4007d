"""What says how to use the command does not wait for torch."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.__main__ import VERBS, main
from adafilter_dist.launch.sweep import expand
from adafilter_dist.recipe import dump_recipe, load_recipe
from adafilter_dist.recipe.changes import judge

_ASK = """\
import sys
from adafilter_dist.__main__ import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""


def test_help_lists_the_verbs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASK, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:-3]] == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_how_it_is_used(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASK, verb, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: adafilter {verb}")


def examples(verb: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words behind the verb of each example in its help."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    lines = re.split(r"^examples?:\n", text, flags=re.MULTILINE)[1].partition("\n\n")[0]
    commands = [shlex.split(line, comments=True) for line in lines.splitlines()]
    assert all(command[:2] == ["adafilter", verb] for command in commands)
    return [command[2:] for command in commands]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the runs and the site that the examples name."""
    for name in ("demo", "food101"):
        run = tmp_path / "runs" / name / "1a2b3c4d"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(dump_recipe(load_recipe([f"recipe={name}"])))
        (run / "status.json").write_text('{"state": "stopped"}')
    sites = tmp_path / "adafilter"
    sites.mkdir()
    (sites / "mysite.yaml").write_text("partition: gpu\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What runs an example whole, or all of it that needs no data.
RUN = {"train": ["--cfg"], "submit": ["--dry-run"], "status": [], "rm": ["--yes"]}


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_in_the_help_are_commands(
    verb: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examples(verb, capsys)
    assert found
    for words in found:
        settings = [word for word in words if "=" in word]
        folders = [word for word in words if word.startswith("runs/")]
        assert settings or folders or verb in ("status", "doctor")
        recipes = [word for word in settings if word.startswith("recipe=")]
        if verb == "resume":
            kept = load_recipe([f"recipe={folders[0]}/recipe.yaml"])
            new = load_recipe([f"recipe={folders[0]}/recipe.yaml", *settings])
            judge(kept, new)
        elif recipes:
            for member in expand(settings):
                load_recipe(member.words)
        assert all((place / folder).is_dir() for folder in folders)
        with pytest.raises(SystemExit) as left:  # the options are known, and take such values
            main([verb, *words, "--help"])
        assert left.value.code == 0
        if verb in RUN and "--watch" not in words:
            assert main([verb, *words, *RUN[verb]]) == 0


def test_the_first_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("e.g. ")]
    _, verb, *words = shlex.split(line.removeprefix("e.g. "))
    assert verb in VERBS
    load_recipe(words)
