"""docs/keys.md is what the types say, and the types say something of every key."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from adafilter_dist.recipe import load_recipe

CLONE = Path(__file__).parents[2]
TOOL = CLONE / "tools" / "keys_page.py"
PAGE = CLONE / "docs" / "keys.md"


def test_the_page_is_what_the_types_say() -> None:
    spec = importlib.util.spec_from_file_location("keys_page", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert PAGE.read_text() == module.page(), "write it anew: python tools/keys_page.py"


def test_every_key_of_a_recipe_has_its_row() -> None:
    rows = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE))
    for words in ([], ["engine=deepspeed"], ["method=bi_tuning"]):
        recipe = load_recipe(["recipe=demo", *words])
        missing = set(keys(recipe)) - rows
        assert missing == {"method.name", "engine.name"}
    assert {"method.gate.contrast", "method.sparsity.kind", "data.mixed.changes"} <= rows


def keys(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """The keys of a recipe, as the command line has them."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_says_what_it_is_for() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|(?:.*[^\\])?\| *\|$", PAGE.read_text(), re.MULTILINE)
    assert rows == []
