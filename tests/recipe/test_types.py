"""Every key takes its own type alone, and numbers within bounds that make sense."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.keys import sections_in

NUMBERS = ["1e999", ".inf", "-.inf", ".nan", "-1e300", "1e300", "9" * 40]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {name: imagefolder, root: pictures}\n")
    return path


def errors(file: Path, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe([f"recipe={file}", *words])
    return str(caught.value).splitlines()


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Each key that holds a value, with the section and the field."""
    for key, field in section.model_fields.items():
        inner = list(sections_in(field.annotation))
        for part in inner:
            yield from leaves(part, f"{prefix}{key}.")
        if not inner:
            yield f"{prefix}{key}", section, field


def types_in(annotation: Any) -> set[Any]:
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {type(part) for part in parts}
    return set().union(*map(types_in, parts)) if parts else {annotation}


LEAVES = {key: (section, field) for key, section, field in leaves(Recipe)}
NUMERIC = [
    key
    for key, (_, field) in LEAVES.items()
    if types_in(field.annotation) & {int, float} and str not in types_in(field.annotation)
]


def kind(key: str) -> list[str]:
    """The words that make the key one of its section."""
    section, _ = LEAVES[key]
    top = key.partition(".")[0]
    if top in ("method", "engine") and "name" in section.model_fields:
        return [f"{top}={section.model_fields['name'].default}"]
    return []


def word(key: str, value: str) -> str:
    """The value in all places where the key is a list or a tuple."""
    count = {"step_epochs": 1, "mean": 3, "std": 3, "scale": 2, "ratio": 2}.get(
        key.rpartition(".")[2], 0
    )
    return f"{key}=[{', '.join([value] * count)}]" if count else f"{key}={value}"


def test_there_are_numeric_keys_of_every_section() -> None:
    assert len(NUMERIC) > 50
    assert {key.partition(".")[0] for key in NUMERIC} >= {
        *("seed", "data", "augment", "model", "method", "optim", "ema", "train", "engine"),
        *("checkpoint", "log", "launch"),
    }


@pytest.mark.parametrize("key", NUMERIC)
def test_no_number_key_takes_what_is_no_sensible_number(file: Path, key: str) -> None:
    for value in [*NUMBERS, "true", "yes", "on", "'1'", "1_000", "1:30", "x"]:
        lines = errors(file, *kind(key), word(key, value))
        assert all(line.startswith(key) for line in lines)


@pytest.mark.parametrize(
    "key", [k for k in NUMERIC if float not in types_in(LEAVES[k][1].annotation)]
)
def test_an_integer_is_written_as_one(file: Path, key: str) -> None:
    lines = errors(file, *kind(key), word(key, "3.0"))
    assert all(line.startswith(key) and "integer" in line for line in lines)


BOOLS = [key for key, (_, field) in LEAVES.items() if types_in(field.annotation) == {bool}]


@pytest.mark.parametrize("key", BOOLS)
def test_only_true_and_false_are_true_and_false(file: Path, key: str) -> None:
    for value in ("yes", "on", "1", "0", "'true'", "1.0"):
        (line,) = errors(file, *kind(key), f"{key}={value}")
        assert line.startswith(f"{key}=")


TEXTS = [
    key
    for key, (_, field) in LEAVES.items()
    if types_in(field.annotation) <= {str, type(None)}
    and len(typing.get_args(field.annotation)) < 3
]


@pytest.mark.parametrize("key", [key for key in TEXTS if key != "engine.config"])
def test_a_text_that_looks_like_a_bool_is_quoted(file: Path, key: str) -> None:
    lines = errors(file, *kind(key), f"{key}=true")
    assert len(lines) == 1 and lines[0].startswith(key)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=010"], ""),
        (["optim.lr=1"], ""),
        (["optim.lr=true"], "optim.lr=true: input should be a valid number"),
        (["augment.flip=on"], "augment.flip=on: input should be a valid number"),
        (["optim.lr=.inf"], "optim.lr=.inf: input should be a finite number"),
        (["train.epochs=1e3"], "train.epochs=1000.0: input should be a valid integer"),
        (["train.epochs=1000000"], "train.epochs=1000000: input should be less than or equal to"),
        (["name=true"], "name=true: must be a text; write it in quotes"),
        (["optim=5"], "optim=5: a section of keys; write optim.KEY=VALUE"),
        (["data.classes=cat"], "data.classes=cat: must be a list, as in [a, b]"),
        (["data.mean=[123, 117, 104]", "data.std=[1, 1, 1]"], "data.mean.0=123: input should be"),
        (["data.mean=[0.5, 0.5]", "data.std=[1, 1, 1]"], "data.mean: has too few values"),
        (["launch.environment={A: true}"], "launch.environment.A=true: must be a text; write it"),
        (["method.layers=("], "method.layers=(: is not a regular expression: missing )"),
        (["data.root=~nobody-here/x"], "data.root=~nobody-here/x: begins with ~ and the name of"),
        (["data.root=/" + "x" * 300], "data.root=/xxx"),
        (["name=" + "x" * 400], "name=xxx"),
        (["launch.time=9999999"], "launch.time=9999999: is not a time limit"),
        (["checkpoint.lease=9999999h"], "checkpoint.lease=9999999h: must be at most a year"),
        (["engine=deepspeed", "engine.zero_stage=true"], "engine.zero_stage=true: must be an int"),
        (
            ["engine=deepspeed", "engine.config={a: .inf}"],
            "engine.config: inf is not a finite number",
        ),
    ],
)
def test_values_and_what_is_said_of_them(file: Path, words: list[str], line: str) -> None:
    if not line:
        load_recipe([f"recipe={file}", *words])
        return
    said = errors(file, *words)
    assert said[0].startswith(line)
    assert all(len(text) < 400 for text in said)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": 1, "a": 2}', "a stands there twice"),
        ('{"a": NaN}', "nan is not a finite number"),
        ("[" * 100_000, "nested more than 30 deep"),
        ('{"a": ' * 40 + "1" + "}" * 40, "nested more than 30 deep"),
        ("[]", "must hold a JSON object"),
        ("{", "not JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "exceeds the limit"),
    ],
)
def test_a_json_file_is_as_strict(file: Path, content: str, problem: str) -> None:
    other = file.with_name("ds.json")
    other.write_text(content)
    (line,) = errors(file, "engine=deepspeed", f"engine.config={other}")
    assert problem in line
    other.unlink()
    other.mkdir()
    (line,) = errors(file, "engine=deepspeed", f"engine.config={other}")
    assert "not a regular file" in line
