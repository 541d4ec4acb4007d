"""TAB: what is offered for a line, and in real shells at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adafilter_dist.__main__ import VERBS
from adafilter_dist.compare.contenders import CONTENDERS
from adafilter_dist.recipe.find import recipe_names
from adafilter_dist.recipe.next_words import next_words, takes_path

_TIMEOUT = 60.0
# Answers each line of its argument as a shell would be answered, in a forked process of its own.
_ANSWER = """
import json, os, sys
from adafilter_dist.__main__ import main
from adafilter_dist.recipe import schema
answers = {}
for line in json.loads(sys.argv[1]):
    out = os.path.join(sys.argv[2], "offered")
    if not (child := os.fork()):
        os.environ.update(COMP_LINE=line, COMP_POINT=str(len(line)), _ARGCOMPLETE="1",
                          _ARGCOMPLETE_IFS="\\n", _ARGCOMPLETE_STDOUT_FILENAME=out)
        main()
        os._exit(1)
    os.waitpid(child, 0)
    answers[line] = open(out).read().split("\\n")
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs in runs/demo, and a folder of pictures."""
    root = tmp_path_factory.mktemp("tab")
    for name in ("1a2b3c4d", "5e6f7a8b"):
        (root / "runs" / "demo" / name).mkdir(parents=True)
        (root / "runs" / "demo" / name / "recipe.yaml").write_text("name: demo\n")
    (root / "pictures").mkdir()
    return root


def test_what_is_offered(runs: Path, tmp_path: Path) -> None:
    """Verbs, options and their choices, recipes, keys and values, runs, files, lists."""
    offered = {
        "adafilter ": [*VERBS],
        "adafilter tra": ["train "],
        "adafilter train --ch": ["--check "],
        "adafilter train recipe=food101-s": ["recipe=food101-sparse "],
        "adafilter train recipe=demo train.dete": [""],
        "adafilter train recipe=demo determ": ["deterministic="],
        "adafilter train recipe=demo deterministic=": ["deterministic=true", "deterministic=false"],
        "adafilter train data.root=pict": ["data.root=pictures/"],
        "adafilter train --allow-mismatch optim.lr_h": ["optim.lr_head "],
        "adafilter evaluate --split ": ["test", "val"],
        "adafilter export runs/demo/1a2b3c4d --to o": ["onnx "],
        "adafilter resume ": ["runs/demo/1a2b3c4d", "runs/demo/5e6f7a8b"],
        "adafilter logs runs/demo/5": ["runs/demo/5e6f7a8b "],
        "adafilter report runs/demo/1a2b3c4d runs/demo/5": ["runs/demo/5e6f7a8b "],
        "adafilter predict runs/demo/1a2b3c4d pic": ["pictures/"],
        "adafilter compare tune_": ["tune_seed="],
        "adafilter submit comp": ["compare "],
        "adafilter compare methods=finetune,spo": ["methods=finetune,spottune "],
        "adafilter train --workers 3": [""],
    }
    command = [sys.executable, "-c", _ANSWER, json.dumps(list(offered)), str(tmp_path)]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=_TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == offered


def test_keys_are_offered_with_their_meaning_and_choices_with_their_values() -> None:
    """Sections take no value, so they are not offered; methods do."""
    every = next_words("")
    assert "optim=" not in every
    assert {"recipe=", "method=", "optim.lr=", "engine=", "seed="} <= set(every)
    assert "prepare" in every["data.prepared="]
    assert set(next_words("recipe=")) == {f"recipe={name}" for name in recipe_names()}
    methods = {word.partition("=")[2] for word in next_words("method=")}
    assert methods <= set(CONTENDERS)
    assert set(next_words("method.name=ada")) == {"method.name=adafilter"}
    assert "train.precision=bf16" in next_words("train.precision=")
    assert not next_words("optim.lr=")
    assert not next_words("nonsense=")


def test_which_keys_take_paths() -> None:
    """Files are offered for them, and for nothing else."""
    assert takes_path("data.root") and takes_path("run_dir") and takes_path("recipe")
    assert not takes_path("optim.lr") and not takes_path("nonsense") and not takes_path("name")


_SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(adafilter completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u; eval "$(adafilter completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "adafilter completion fish | source"),
}


class Terminal:
    """A program at a terminal of its own: what is typed into it, and what appears."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._process, self._terminal = pty.fork()
        if not self._process:
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            env = dict(os.environ, PATH=path, TERM="dumb", HOME=str(folder), PS1="$ ")
            os.execvpe(command[0], command, env)
        self.screen = ""

    def type(self, keys: str, until: str) -> None:
        """Press keys and wait until the rest of the screen matches an expression."""
        begun = len(self.screen)
        os.write(self._terminal, keys.encode())
        deadline = time.monotonic() + _TIMEOUT
        while not re.search(until, self.screen[begun:]):
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._terminal], [], [], left)[0]
            assert ready, f"{until!r} did not appear after {keys!r}: {self.screen[begun:]!r}"
            read = os.read(self._terminal, 65536).decode(errors="replace")
            # Fish asks what the terminal can do, and waits for the answer.
            if "\x1b[c" in read or "\x1b[0c" in read:
                os.write(self._terminal, b"\x1b[?62;c")
            self.screen += read

    def close(self) -> None:
        """Kill it and wait."""
        os.kill(self._process, 9)
        os.waitpid(self._process, 0)
        os.close(self._terminal)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, runs: Path) -> Iterator[Terminal]:
    """A shell that has read the script; the test is skipped, and says so, where it is missing."""
    command, script = _SHELLS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"apt-get install {command[0]}")
    terminal = Terminal(command, runs)
    try:
        terminal.type(f"{script}; echo rea''dy\n", "ready")
        yield terminal
    finally:
        terminal.close()


@pytest.mark.slow
@pytest.mark.parametrize("terminal", _SHELLS, indirect=True)
def test_in_a_shell(terminal: Terminal) -> None:
    """A verb, a recipe behind its =, the one run of two that is meant; each with one TAB."""
    terminal.type("adafilter eval\t", r"uate")
    terminal.type("recipe=food101-s\t", r"food101-s.*parse")
    terminal.type("runs/demo/5e\t", r"5e.*6f7a8b")
