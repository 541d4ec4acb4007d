"""YAML files: the core schema of YAML 1.2, each key once, and nothing that could hurt."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from adafilter_dist.__main__ import main
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe, yaml_loader
from adafilter_dist.recipe.identity import flat, run_hash
from adafilter_dist.recipe.yaml_loader import MOST_NODES, YamlError, read_yaml

RESOLVED = sorted((Path(__file__).parent / "resolved").glob("*.yaml"))
GOOD = "name: mine\ndata: {name: imagefolder, root: pictures}\n"

PARSERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]


@pytest.fixture(params=PARSERS, ids=lambda parser: parser.__name__)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of PyYAML's two parsers: one of them is not everywhere."""
    monkeypatch.setattr(yaml_loader, "_PARSER", request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def doubled(levels: int, inner: str, outer: str) -> str:
    """Each level holds the one before it nine times."""
    lines = [f"a0: &a0 {inner}"]
    for level in range(1, levels):
        again = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {outer.format(again)}")
    return "\n".join(lines) + "\n"


def chained(levels: int) -> str:
    """Each level is 28 lists deep and ends in the one before it."""
    lines = ["a0: &a0 1"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {'[' * 28}*a{level - 1}{']' * 28}")
    return "\n".join(lines) + "\n"


# What a file holds, and what the one line says of it.
HOSTILE: dict[str, tuple[str, str]] = {
    "a bomb of lists": (doubled(9, "[x, x]", "[{}]"), "more than 100,000 values"),
    "a bomb of mappings": (doubled(12, "{a: {b: c}}", "[{}, {{k: [1]}}]"), "more than 100,000"),
    "aliases upon aliases, each deeper": (chained(60), "nested more than 30 deep"),
    "a list in itself": ("optim: &a [*a]\n", "line 1: *a stands inside of &a itself"),
    "a mapping in itself": ("optim: &a\n  lr: *a\n", "line 2: *a stands inside of &a itself"),
    "an alias of nothing": ("optim: *nothing\n", "nothing"),
    "900 nested lists": ("optim: " + "[" * 900 + "]" * 900, "nested more than 30 deep"),
    # libyaml reads on a little before it hands out a list, and since 0.2.6 refuses 1,000 itself.
    "3,000 nested lists": ("optim: " + "[" * 3000 + "]" * 3000, "nest"),
    "1,000 nested mappings": (
        "".join(" " * level + "a:\n" for level in range(1000)),
        "nested more than 30 deep",
    ),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(MOST_NODES)), "more than 100,000 values"),
    "many unknown keys": (
        GOOD + "".join(f"k{n}: 1\n" for n in range(3000)),
        "error: and 2980 more mistakes",
    ),
    "a number without end": ("seed: " + "1" * 100_000, "a number of 100000 characters"),
    "a key without end": (GOOD + "k" * 900 + ": 1\n", "unknown key"),
    "tabs": ("optim:\n\tlr: 1\n", "line 2, column 1: not YAML"),
    "NUL": ("name: mi\0ne\n", "line 1: the character U+0000 is not allowed"),
    "an escape sequence of a terminal": ("name: x\n# \x1b[2J\n", "U+001B"),
    "a control character in a text": ('data: {root: "a\\a"}\n', "cannot be printed"),
    "a key twice": ("optim:\n  lr: 1\n  lr: 2\n", "optim.lr stands in lines 2 and 3"),
    "a section twice": (GOOD + "seed: 1\ndata: {}\n", "data stands in lines 2 and 4"),
    "a key twice in a line": ("optim: {lr: 1, lr: 2}\n", "optim.lr stands twice in line 1"),
    "a key inside and with a dot": (
        "optim: {lr: 1}\noptim.lr: 2\n",
        "optim.lr stands in lines 1 and 2",
    ),
    "a merge key": ("a: &a {lr: 1}\noptim:\n  <<: *a\n", "line 3: <<: YAML 1.2 merges nothing"),
    "code": ("name: !!python/object/apply:os.system [ls]\n", "line 1: the tag "),
    "a tag that does not fit": ("seed: !!int abc\n", "line 1: the tag "),
    "a timestamp that is none": ("seed: !!timestamp abc\n", "line 1: the tag "),
    "a mapping as a key": ("? {a: 1}\n: 2\n", "line 1: a key is a text"),
    "an alias as a key": ("a: &a b\n*a : 2\n", "line 2: a key is a text"),
    "two documents": (GOOD + "---\n" + GOOD, "line 3: a second document begins"),
    "YAML 1.1": ("%YAML 1.1\n---\n" + GOOD, "%YAML 1.1: recipes are YAML 1.2"),
    "a version without end": ("%YAML 1." + "9" * 5000 + "\n---\n" + GOOD, "not YAML"),
    "an escape past Unicode": ('name: "\\UFFFFFFFF"\n', ""),
    "half a surrogate": ('data: {name: imagefolder, root: "\\ud800"}\n', ""),
    "nothing": ("", "a recipe is a mapping of sections"),
    "a list": ("- a\n", "a recipe is a mapping of sections"),
    "a text": ("name\n", "a recipe is a mapping of sections"),
    "an unclosed quote": ('name: "mine\n', "not YAML"),
    "a section that is a list": (GOOD + "optim: [1, 2]\n", "optim=[1,2]: a section of keys"),
    "a base that is a list": (GOOD + "base: [demo]\n", "recipe=: which one?"),
}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of the refusal by the real command; asserts the exit code."""
    capsys.readouterr()
    assert main(["train", "--cfg", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines and all(line.startswith("error: ") and line.isprintable() for line in lines)
    assert max(map(len, lines)) < 900
    return lines


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line(
    case: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, problem = HOSTILE[case]
    file.write_text(content)
    lines = refused(capsys, f"recipe={file}")
    assert problem in lines[-1]
    assert len(lines) == (21 if case == "many unknown keys" else 1)
    if "stands in" not in problem and "which one" not in problem and "line" in problem:
        assert lines[0].startswith(f"error: {file}: ")


BYTES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"name: mine\ndata: {root: caf\xe9}\n", "line 2: not UTF-8"),
    "UTF-16": ("name: mine\n".encode("utf-16"), "line 1: not UTF-8"),
    "random": (bytes(range(256)), "not UTF-8"),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_text(case: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, problem = BYTES[case]
    file.write_bytes(content)
    (line,) = refused(capsys, f"recipe={file}")
    assert line == f"error: {file}: {problem}" or (case == "random" and problem in line)


def test_a_file_of_100_mb_is_not_read(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)
    os.truncate(file, 100_000_000)
    (line,) = refused(capsys, f"recipe={file}")
    assert line == f"error: {file}: larger than 1 MB, which no recipe is"


PLACES: dict[str, tuple[Callable[[Path], str], str]] = {
    "a folder": (lambda folder: str(folder), "a folder; give a .yaml file in it"),
    "a device": (lambda folder: "/dev/zero", "not a regular file"),
    "a long name": (lambda folder: str(folder / ("x" * 400 + ".yaml")), "name too long"),
    "a long path": (lambda folder: "/x" * 5000, "name too long"),
    "nobody's home": (lambda folder: "~nobody-here/x.yaml", "no such file"),
    "NUL": (lambda folder: "/x\0y", "no such file"),
    "a file behind a file": (lambda folder: __file__ + "/x.yaml", "no such file"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_that_hold_no_recipe(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, problem = PLACES[case]
    (line,) = refused(capsys, f"recipe={place(tmp_path)}")
    assert problem in line.lower()


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (line,) = refused(capsys, f"recipe={tmp_path / 'pipe.yaml'}")
    assert "not a regular file" in line


def test_a_chain_of_bases_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        (tmp_path / f"r{number}.yaml").write_text(f"base: r{number + 1}\n")
    (line,) = refused(capsys, f"recipe={tmp_path / 'r0.yaml'}")
    assert "more than 20 recipes one over the other" in line


CORE = {
    "null": None,
    "~": None,
    "": None,
    "true": True,
    "False": False,
    "yes": "yes",
    "on": "on",
    "off": "off",
    "y": "y",
    "010": 10,
    "0o10": 8,
    "0x1F": 31,
    "-0": 0,
    "+12": 12,
    "1_000": "1_000",
    "1:30:00": "1:30:00",
    "1.": 1.0,
    ".5": 0.5,
    "1e-3": 0.001,
    "1E3": 1000.0,
    "12e03": 12000.0,
    "1.5e+2": 150.0,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "inf": "inf",
    "1e": "1e",
    "0b1": "0b1",
    "2024-01-01": "2024-01-01",
    "=": "=",
    "\u0661": "\u0661",  # a digit, but not one of YAML's
}


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", CORE)
def test_scalars_are_those_of_the_core_schema(text: str) -> None:
    (value,) = read_yaml(f"- {text}\n")
    assert value == CORE[text] and isinstance(value, type(CORE[text]))
    assert read_yaml(f"- '{text}'\n") == [text]
    assert read_yaml(f"- !!str {text}\n") == [text]


def test_keys_are_texts_and_aliases_are_copies() -> None:
    tree = read_yaml("a: &x {1: [010], on: ~}\nb: *x\n")
    assert tree == {"a": {"1": [10], "on": None}, "b": {"1": [10], "on": None}}
    assert tree["a"] is not tree["b"] and tree["a"]["1"] is not tree["b"]["1"]


def test_a_quoted_merge_key_is_a_key() -> None:
    assert read_yaml("'<<': 1\n") == {"<<": 1}


@pytest.mark.parametrize("path", RESOLVED, ids=lambda path: path.name)
def test_recipes_of_earlier_runs_are_read_to_the_same(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe([f"recipe={path}"])
    assert run_hash(recipe) == path.name.split(".")[-2]
    # The values as PyYAML read them when these were written; the version that wrote them dumped
    # each of them so, texts of digits in quotes.
    old = yaml.safe_load(path.read_text())
    values = flat(recipe.model_dump(mode="json"))
    assert {key: values[key] for key in flat(old)} == flat(old)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe([f"recipe={again}"]) == recipe
    # An older version, which reads YAML 1.1, would read the same too.
    assert Recipe.model_validate(yaml.safe_load(again.read_text())) == recipe


def test_earlier_recipes_are_there() -> None:
    assert len(RESOLVED) == 5


def test_yaml_errors_name_line_and_column() -> None:
    with pytest.raises(YamlError, match=r"^line 2, column 5: not YAML: mapping values are not"):
        read_yaml("a: 1\nb: c: d\n")


def test_a_base_may_be_a_number(tmp_path: Path) -> None:
    (tmp_path / "2024.yaml").write_text(GOOD)
    child = tmp_path / "child.yaml"
    child.write_text("base: 2024\nname: 010\n")
    assert load_recipe([f"recipe={child}"]).name == "010"
    with pytest.raises(UserError, match="no recipe of that name"):
        child.write_text("base: 2025\n")
        load_recipe([f"recipe={child}"])
