"""What is nearly right is answered with the right word: one line, exit code 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from adafilter_dist.__main__ import VERBS, main
from adafilter_dist.recipe import load_recipe

# What somebody types, and a part of the answer.
HINTS = {
    "train --recipe demo": "--recipe demo: settings are words, not options: recipe=demo",
    "train --recipe=demo": "--recipe demo: settings are words, not options: recipe=demo",
    "train --config demo": "recipe=demo",
    "train recipe=demo --epochs 3": "--epochs 3: settings are words, not options: train.epochs=3",
    "train --lr 0.1 recipe=demo": "optim.lr=0.1",
    "train recipe=demo -lr 0.1": "optim.lr=0.1",
    "train recipe=demo --batch-size 64": "train.global_batch=64",
    "train recipe=demo --train.epochs=3": "train.epochs=3",
    "train recipe=demo --no-such-thing": "--no-such-thing: no such option; expected key=value",
    "train recipe=demo --chek": "--chek: no such option (did you mean --check?)",
    "train recipe=demo lr=0.1": "lr: unknown key (did you mean optim.lr?)",
    "train recipe=demo epochs=3": "epochs: unknown key (did you mean train.epochs?)",
    "train recipe=demo optim.epochs=3": "optim.epochs: unknown key (did you mean train.epochs?)",
    "train recipe=demo batch_size=3": "did you mean train.global_batch?",
    "train recipe=demo learning_rate=1": "did you mean optim.lr?",
    "train recipe=demo optim.zero_stage=1": "did you mean engine.zero_stage?",
    "train recipe=demo Optim.lr=1": "did you mean 'optim'?",
    "train recipe=demo optim.LR=1": "did you mean 'lr'?",
    "train demo": "demo: did you mean recipe=demo?",
    "train recipe demo": "recipe demo: did you mean recipe=demo?",
    "train recipe:demo": "recipe:demo: did you mean recipe=demo?",
    "train recipe = demo": "recipe: no blanks stand beside the =: recipe=demo",
    "train recipe= demo": "demo: did you mean recipe=demo?",
    "train recipe =demo": "recipe: no blanks stand beside the =: recipe=demo",
    "train Recipe=demo": "Recipe=demo: did you mean recipe=demo?",
    "train recipie=demo": "recipie=demo: did you mean recipe=demo?",
    "train config=demo": "config=demo: did you mean recipe=demo?",
    "train recipe=demo,": "recipe=demo,: no recipe of that name (did you mean 'demo'?)",
    "train recipe=Demo": "(did you mean 'demo'?)",
    "train recipe=demo.yaml": "recipe=demo.yaml: no such file (did you mean recipe=demo?)",
    "train recipe=control/mixed-domains.yaml": "(did you mean recipe=control/mixed-domains?)",
    "train recipe=control/mixd-domains": "(did you mean 'control/mixed-domains'?)",
    "train recipe=control": "(did you mean 'control/mixed-domains'?)",
    "train recipe=": "recipe=: which one? There are: caltech256",
    "train my.yaml": "my.yaml: did you mean recipe=my.yaml?",
    "train recipe=demo epochs 3": "epochs 3: did you mean train.epochs=3?",
    "train recipe=demo optim.lr:0.1": "optim.lr:0.1: did you mean optim.lr=0.1?",
    "train recipe=demo recipe=food101": "recipe=demo and recipe=food101: give one of them",
    "train recipe=demo engine.config={}": "a key of engine=deepspeed",
    "train": "which recipe? add recipe=NAME",
    "demo": "demo: a verb comes first: adafilter train recipe=demo",
    "recipe=demo": "recipe=demo: a verb comes first, e.g. adafilter train recipe=demo",
    "--recipe demo": "adafilter train recipe=demo",
    "Train": "'Train' is not a verb (did you mean 'train'?)",
    "ls": "'ls' is not a verb (did you mean 'status'?)",
    "status --wtch": "--wtch: no such option (did you mean --watch?)",
    "logs": "the following arguments are required: RUN; adafilter logs --help",
    "logs x --rank y": "argument --rank: invalid int value: 'y'",
    "resume demo": "demo: expected a run's folder",
    "resume recipe=demo": "adafilter train recipe=... again",
    "evaluate demo": "demo: expected a run's folder",
    "evaluate recipe=demo --split tset": "argument --split: invalid choice: 'tset'",
    "compact recipe demo": "recipe: expected a run's folder",
    "inspect recipe=demo --class 5": "--class: no such option (did you mean --classes?)",
    "submit demo": "demo: did you mean recipe=demo?",
    "submit trian recipe=demo": "'trian': not a verb of adafilter submit (did you mean 'train'?)",
    "submit --nodes 2 recipe=food101": "launch.nodes=2",
    "prepare --data-dir /x recipe=food101": "data.root=/x",
}


@pytest.mark.parametrize("command", HINTS)
def test_the_right_word_is_named(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and HINTS[command] in line
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_of_any_verb_is_one_line(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--nonsense"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --nonsense: no such option")


def test_two_mistakes_are_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epochs", "3", "--lr=1", "recipe=demo"]) == 2
    assert [line.partition(": settings")[0] for line in capsys.readouterr().err.splitlines()] == [
        "error: --epochs 3",
        "error: --lr 1",
    ]


def test_an_options_own_value_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe=demo", "--cfg", "--allow-mismatch", "optim.lr"]) == 0
    assert capsys.readouterr().out.startswith("name: demo\n")


def test_what_follows_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "--", "recipe=demo"]) == 0
    assert load_recipe(["recipe=demo"]).name in capsys.readouterr().out
