"""What stands behind the = on the command line: taken as it is, and typed by YAML 1.2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.launch.sweep import expand
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.comma_list import split_list
from adafilter_dist.recipe.command import prepare_line
from adafilter_dist.recipe.word import as_word, read_word

# Each would be cut, changed or refused by a YAML parser.
TEXTS = [
    *(
        "/x/hash #2",
        "#",
        "/x/a: b",
        "a:",
        "&a",
        "*a",
        "!x",
        "|",
        ">",
        "%x",
        "@x",
        "`x`",
        "- a",
        "?",
    ),
    *(" x", "x ", " x ", "  ", "it's", 'say "x"', "a\\b", "C:\\new", "a]b", "a}b", "x[1]", "x{1}"),
    *(
        "...",
        "---",
        "--- a",
        "<<",
        "=",
        "yes",
        "on",
        "1_000",
        "1:30",
        "2024-01-01",
        "é",
        "\U0001f600",
    ),
    *("a  #  b", "key: [a", "a=b=c", "$X", "~/x y", "null ", "true "),
]


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


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_stands(file: Path, text: str) -> None:
    recipe = load(file, f"data.root=/data/{text}", f"launch.mail_user={text}")
    assert recipe.data.root == Path(f"/data/{text}")
    assert recipe.launch.mail_user == text


@pytest.mark.parametrize("text", ["010", "1e3", "1.", "0x10", "+5", ".inf", "1.50"])
def test_a_key_for_texts_takes_a_number_as_it_is_written(file: Path, text: str) -> None:
    assert load(file, f"launch.partition={text}").launch.partition == text
    assert load(file, f"data.classes=[{text}, a]").data.classes == [text, "a"]
    root = load(file, f"data.root={text}").data.root
    assert root is not None and root.name == text
    assert load(file, f"launch.environment={{A: {text}}}").launch.environment["A"] in (text, 5)
    file.write_text(file.read_text() + f"launch: {{partition: {text}, srun_args: [{text}]}}\n")
    launch = load(file).launch
    assert (launch.partition, launch.srun_args) == (text, [text])


def test_brackets_and_quotes_are_yaml(file: Path) -> None:
    recipe = load(file, "data.classes=[\"a, b\", c #d\n, 'it''s', true!]", "data.root='/x/[a], b'")
    assert recipe.data.classes == ["a, b", "c", "it's", "true!"]
    assert recipe.data.root == Path("/x/[a], b")
    assert load(file, 'launch.account="null"').launch.account == "null"
    assert load(file, "launch={nodes: 2, mem: 010}").launch.mem == "010"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[old] pictures", "begins like a list, but more stands behind its end"),
        ("[a, b] # c", "begins like a list, but more stands behind its end"),
        ("[a, b", "a comma list is a sweep"),
        ("[a", "begins like a list, but"),
        ("{a} b", "begins like a mapping, but more stands behind its end"),
        ('"a" b', "begins like a text in quotes, but more stands behind its end"),
        ("'tis", "begins like a text in quotes, but column 5: not YAML"),
        ("1" * 400, "a number of 400 characters"),
    ],
)
def test_what_begins_as_yaml_must_be_it_to_its_end(file: Path, text: str, problem: str) -> None:
    (line,) = errors(file, f"data.root={text}")
    assert line.startswith(f"data.root={text[:100]}") and problem in line
    # The line says how it is written as a text, for a shell; that is what it then is.
    import shlex

    if "characters" not in problem:
        (word,) = shlex.split(
            line.rpartition(" text ")[2].removeprefix("it is ").removeprefix("as ")
        )
        root = load(file, word).data.root
        assert root is not None and str(root).endswith(text)


def test_control_characters_and_bytes_that_are_no_text(file: Path) -> None:
    for text in ("a\nb", "a\x1b[2J", "a\0", "caf\udce9", "a\u2028b", "\x85"):
        (line,) = errors(file, f"data.root={text}")
        assert "holds a character that cannot be printed" in line and line.isprintable()
        (line,) = errors(file, f"{text}=1")
        assert line.isprintable()
    assert load(file, 'launch.setup=["a\\tb\\nc"]').launch.setup == ["a\tb\nc"]


VALUES: list[Any] = [
    *TEXTS,
    *("010", "true", "null", "", "[x", "{", '"', "'", "a,b", "a\nb", "\x7f", "\u2028", "'a,b'"),
    *(None, True, 5, -1, 1e-05, 1e300, 0.1, [], {}, ["a", ["b", 1]], {"a b": {"c": [None, "]"]}}),
    *(["[", "x,y", "it's", '"', "\U0001f600\n", "010"], {"}": "{", "a,b": 'q"'}),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_written_as_a_word_is_read_as_itself(value: Any) -> None:
    word = as_word(value)
    assert read_word(word) == value and isinstance(read_word(word), type(value))
    assert split_list(word) == [word]


def test_the_line_for_preparing_reads_back(file: Path) -> None:
    import shlex

    root = "/data/a, b #2's [x]"
    recipe = load_recipe(
        ["recipe=imagefolder", f"data.root={as_word(root)}", "data.classes=['010', 'a, b', no]"]
    )
    _, verb, *words = shlex.split(prepare_line(recipe))
    again = load_recipe(words)
    assert verb == "prepare"
    assert (again.data, again.model) == (recipe.data, recipe.model)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["recipe=control/mixed-domains"], "control/mixed-domains"),
        (["recipe=stanford-dogs", "name=mine"], "stanford-dogs"),
        (["recipe=paper/modern", "over=stanford-dogs"], "stanford-dogs"),
    ],
)
def test_the_line_for_preparing_names_a_recipe_of_the_data(words: list[str], name: str) -> None:
    assert prepare_line(load_recipe(words)) == f"adafilter prepare recipe={name}"


def test_of_two_words_for_a_key_the_last_holds_and_of_two_recipes_none(file: Path) -> None:
    assert load(file, "optim.lr=0.5", "optim.lr=0.25").optim.lr == 0.25
    (line,) = errors(file, "recipe=demo")
    assert line == f"recipe={file} and recipe=demo: give one of them"
    assert load(file, f"recipe={file}") == load(file)


def test_blanks_beside_the_commas_of_a_sweep_belong_to_no_value() -> None:
    members = expand(["recipe=demo", "optim.lr=0.1, 0.2", "launch.account=' a, b'"])
    assert [member.values for member in members] == [{"optim.lr": 0.1}, {"optim.lr": 0.2}]
    assert members[0].words == ("recipe=demo", "optim.lr=0.1", "launch.account=' a, b'")
