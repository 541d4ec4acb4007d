"""Counts in words: one of a thing is no plural."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.data.sources.imagefolder import find
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.counted import counted
from tests.data import trees


def test_one_of_a_thing_is_no_plural(tmp_path: Path) -> None:
    assert [counted(n, "file") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]

    # As in a note of prepare.
    root = trees.folders(tmp_path, {"train/owl": 1, "train/wren": 1})
    (root / "train" / "owl" / "notes.txt").write_text("seen at night")
    (note,) = [n for n in find(Data(name="imagefolder", root=root)).notes if "not read" in n]
    assert note.startswith("1 file below ")
