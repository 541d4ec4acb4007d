"""Whatever stands in a file or on the command line: a recipe, or one clear error."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adafilter_dist.recipe.comma_list import split_list
from adafilter_dist.recipe.keys import all_keys
from adafilter_dist.recipe.word import as_word, read_word
from tests.recipe.fuzz_recipes import BASE, try_file, try_words

# The same inputs on every machine and day: a find is a test that is added, not one that flickers.
fuzzed = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=list(HealthCheck),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["auto", "null", "010", "1e3", ".inf", "10min", "4:00:00", "@x", "[", "{a: b}"]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(all_keys()) | st.text(max_size=10)
SECTIONS = st.dictionaries(KEYS, TREES, max_size=5)
# What YAML is made of, so that it often nearly is.
PIECES = st.sampled_from(
    [
        *("a", "name: x", "optim:", "lr: 0.1", "data: ", "\n", "\n  ", " ", "\t", "- ", "? ", ": "),
        *(
            "&a ",
            "*a",
            "<<: ",
            "!!int ",
            "!!python/name:os.system ",
            "!x ",
            "[",
            "]",
            "{",
            "}",
            ",",
        ),
        *('"', "'", "\\x", "\\U", "|", ">", "%YAML 1.1\n", "---\n", "...\n", "#", " #", "@", "`"),
        *(
            "1e999",
            "0o17",
            "\0",
            "\x85",
            "\u2028",
            "\ufeff",
            "\U0001f600",
            "base: ",
            "demo",
            "launch: @",
        ),
    ]
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@fuzzed
@given(content=st.binary(max_size=300))
@example(content=b"")
@example(content=b"\xff\xfe\x00")
def test_any_bytes(folder: Path, content: bytes) -> None:
    try_file(content, folder)
    try_file(BASE.encode() + content, folder)


@fuzzed
@given(pieces=st.lists(PIECES, max_size=30))
def test_almost_yaml(folder: Path, pieces: list[str]) -> None:
    content = "".join(pieces).encode(errors="surrogatepass")
    try_file(content, folder)
    try_file(BASE.encode() + content, folder)


@fuzzed
@given(tree=SECTIONS)
def test_any_values_of_any_keys(folder: Path, tree: dict[str, Any]) -> None:
    content = yaml.safe_dump({"name": "mine", "data": {"name": "imagefolder"}, **tree})
    try_file(content.encode(), folder)


@fuzzed
@given(words=st.lists(st.tuples(KEYS, SCALARS.map(str) | st.text(max_size=20)), max_size=4))
def test_any_words(folder: Path, words: list[tuple[str, str]]) -> None:
    try_words([f"{key}={text}" for key, text in words], folder)
    try_words([text for _, text in words], folder)


@fuzzed
@given(value=TREES.filter(lambda value: "nan" not in repr(value) and "inf" not in repr(value)))
def test_a_value_as_a_word_is_read_back(value: Any) -> None:
    word = as_word(value)
    assert read_word(word) == value
    assert split_list(word) == [word]
