"""Comma lists become runs: what is a list, what is a value, in which order."""

from __future__ import annotations

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.launch.sweep import Member, expand
from adafilter_dist.recipe.comma_list import split_list


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("0.1", ["0.1"]),
        ("0,1,2", ["0", "1", "2"]),
        ("a, b", ["a", " b"]),
        ("[1,2]", ["[1,2]"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("[[1,2],[3,4]]", ["[[1,2],[3,4]]"]),
        ("[[1,2],[3]],null", ["[[1,2],[3]]", "null"]),
        ("{a: [1, 2], b: 3},{c: 4}", ["{a: [1, 2], b: 3}", "{c: 4}"]),
        ("n[3,7-9]", ["n[3,7-9]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a,b"', ['"a,b"']),
        ("'[',']'", ["'['", "']'"]),
        ("['a]',b]", ["['a]',b]"]),
        # What is opened and never closed is a character.
        ("[1,2", ["[1", "2"]),
        ("it's,mine", ["it's", "mine"]),
        ("1],2", ["1]", "2"]),
        (",", ["", ""]),
        ("1,", ["1", ""]),
    ],
)
def test_a_comma_parts_a_list_where_it_is_no_part_of_a_value(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


def test_without_a_comma_list_it_is_one_member_without_values() -> None:
    words = ["recipe=demo", "data.classes=[a,b]", "--odd", "optim.lr=0.1"]
    assert expand(words) == [Member(tuple(words))]
    assert expand([]) == [Member(())]


def test_every_combination_the_last_key_changes_fastest() -> None:
    members = expand(["recipe=demo", "optim.lr=0.1,0.2", "train.epochs=3", "seed=0,1"])
    assert [member.values for member in members] == [
        {"optim.lr": 0.1, "seed": 0},
        {"optim.lr": 0.1, "seed": 1},
        {"optim.lr": 0.2, "seed": 0},
        {"optim.lr": 0.2, "seed": 1},
    ]
    assert [list(member.values) for member in members] == [["optim.lr", "seed"]] * 4
    assert members[2].words == ("recipe=demo", "optim.lr=0.2", "train.epochs=3", "seed=0")


def test_values_are_what_the_recipe_will_hold() -> None:
    (first, second, third) = expand(["method=adafilter,null,[1, 2]"])
    assert first.values == {"method": "adafilter"}
    assert second.values == {"method": None}
    assert third.values == {"method": [1, 2]}


def refused(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        expand(words)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "word",
    [
        *("recipe=demo,food101", "run_dir=a,b", "resume=auto,never", "name=a,b"),
        *("launch.nodes=1,2", "launch=@a,b"),
    ],
)
def test_keys_that_make_no_runs_of_their_own(word: str) -> None:
    (line,) = refused(word, "seed=0")
    assert line.startswith(f"{word}: {word.partition('=')[0]} cannot be swept")


def test_a_text_with_a_comma_is_shown_how_it_is_written() -> None:
    (line,) = refused("launch.mail_type=END,FAIL")
    written = """launch.mail_type='"END,FAIL"'"""
    assert line.endswith(f"as {written}")
    # As the shell hands it on, it is taken.
    assert len(expand(['launch.mail_type="END,FAIL"'])) == 1


def test_empty_and_doubled_values_and_keys_and_all_mistakes_at_once() -> None:
    lines = refused("seed=0,0", "optim.lr=0.1,", "model=a,b", "model=c", 'ema.decay=0.1,"0.2')
    assert lines == [
        "seed=0,0: a value is empty or stands there twice",
        "optim.lr=0.1,: a value is empty or stands there twice",
        "model=a,b: model is given 2 times",
        'ema.decay="0.2: not a YAML value',
    ]
