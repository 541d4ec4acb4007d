"""Documented commands and Python do what they are there for: in miniature, in one folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from tests.distributed.launch import Ended, start, wait
from tests.documented.pages import CLONE, Block, Command, collected
from tests.documented.place import Place
from tests.documented.ways import Way, way_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
COMMANDS, BLOCKS = collected()
SNIPPETS = [block for block in BLOCKS if block.is_python]

# What a command prints, beyond ending well.
PRINTED = {
    "prepare": r"\nready: |already prepared",
    "inspect": r"gated",
    "evaluate": r"top-1",
    "predict": r"images/s",
    "report": r"\.html\n",
    "export": r"written",
    "compact": r"MB",
    "status": r"finished",
    "logs": r"\w",
    "rm": r"removed RUN|removed runs/",
    "doctor": r"torch",
}
# What the pages' Python takes for granted.
BEGIN = """\
import torch
import torchvision
import adafilter_dist
torch.manual_seed(0)
backbone = torchvision.models.resnet18(num_classes=10)
net = adafilter_dist.load("runs/demo/0123abcd")[0]
images = torch.randn(2, 3, 32, 32)
"""
# README's loop leaves out what every loop has.
STEP = """\
loss = model.train()(torch.randn(4, 3, 64, 64)).square().mean()
optimizer.zero_grad()
loss.backward()
optimizer.step()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("documented"))


def of(*ways: Way) -> list[object]:
    """The commands of these ways, each named after its place."""
    return [
        pytest.param(command, id=re.sub(r"[^\w.:=@-]+", " ", f"{command.page} {command.text}"))
        for command in COMMANDS
        if way_of(command) in ways
    ]


@pytest.mark.parametrize("command", of(Way.PLAYED))
def test_it_runs(command: Command, place: Place) -> None:
    words = place.words(command)
    place.ready(words)
    verb, *said = (
        words[words.index("adafilter_dist") + 1 :] if words[0] == "torchrun" else words[1:]
    )
    recipe = [word for word in said if not word.startswith("--")]
    trains = verb == "train" and not {"--cfg", "--check"} & set(said)
    if verb == "train":
        place.must("prepare", *recipe)
    if verb == "logs" and "--rank" in said:
        place.submitted(said[0])
    if trains:
        shutil.rmtree(place.run_of(recipe), ignore_errors=True)
    elif verb == "evaluate" and recipe[0].startswith("recipe="):
        place.train(recipe)

    if words[0] == "torchrun":
        ended = place.torchrun(words[1:])
    elif "--watch" in said:
        ended = interrupted(place, words[1:])
    else:
        agreed = ["--yes"] if verb == "rm" else []  # it asks, and there is nobody to answer
        ended = place.run([verb, *said, *agreed])
    assert ended.code == 0, f"{command}\n{ended.output}"
    assert re.search(PRINTED.get(verb, ""), ended.output), f"{command}\n{ended.output}"
    if trains:
        assert place.is_finished(recipe), f"{command}\n{ended.output}"
    for word in said if verb == "resume" else []:
        if word.startswith("train.epochs="):
            status = json.loads((place.folder / said[0] / "status.json").read_text())
            assert status["state"] == "finished" and status["epochs"] == int(word[13:]), status


def interrupted(place: Place, words: list[str]) -> Ended:
    """A command that goes on until Ctrl-C, which comes once it has printed something."""
    process = start(words, folder=place.folder, environment=place.environment())
    assert process.stdout is not None
    printed = os.read(process.stdout.fileno(), 65536).decode()
    process.send_signal(signal.SIGINT)
    ended = wait(process, 150)
    return Ended(ended.code, printed + ended.output)


@pytest.mark.parametrize("command", of(Way.QUICK))
def test_it_runs_as_it_stands(command: Command) -> None:
    ended = done([sys.executable, *command.words[1:]])
    assert ended.code == 0, f"{command}\n{ended.output}"
    assert len(ended.output.splitlines()) > 5


@pytest.mark.parametrize("command", of(Way.SELECTION))
def test_tests_are_selected(command: Command) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    ended = done([*pytest_, *command.words[1:]])
    assert ended.code == 0, f"{command}\n{ended.output}"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_python(snippet: Block, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.ready([snippet.text])
    monkeypatch.chdir(place.folder)
    torch.set_num_threads(1)
    code = re.sub(r"^\.\.\..*$", lambda _: STEP, snippet.text, flags=re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(BEGIN, "what the page takes for granted", "exec"), names)
    exec(compile(code, f"{snippet.page}:{snippet.line}", "exec"), names)
    assert names.keys() & {"logits", "fast"}


def done(command: list[str]) -> Ended:
    """A command of another kind, run to its end in the clone."""
    process = subprocess.Popen(
        command,
        cwd=CLONE,
        env=os.environ | {"PYTHONPATH": str(CLONE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return wait(process, 120)
