"""A set that is stored almost black says so."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.prepare.summary import summarise
from adafilter_dist.recipe import Recipe


def prepared(root: Path, brightest: dict[str, int], suffix: str = "png") -> tuple[str, list[str]]:
    """What `prepare` prints of 16-bit pictures with these largest values, and notes."""
    for split in ("train", "test"):
        for name, value in brightest.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            ramp = np.linspace(0, value, 64 * 64).astype(np.uint16).reshape(64, 64)
            Image.fromarray(ramp).save(folder / f"one.{suffix}")
    data = {"name": "imagefolder", "root": root, "stored_size": 32, "num_workers": 1}
    recipe = Recipe.model_validate(
        {"name": "dark", "data": data, "model": {"name": "resnet18", "weights": None}}
    )
    said = io.StringIO()
    done = prepare(recipe, Console(file=said, width=300))
    summarise(done.folder, Console(file=said, width=300))
    return said.getvalue(), json.loads((done.folder / "manifest.json").read_text())["notes"]


@pytest.mark.parametrize(
    ("values", "depth", "eight_bit", "factor"),
    [((4095, 3000), 12, 16, 16), ((1000, 900), 10, 4, 64), ((255, 255), 8, 1, 256)],
)
def test_a_dark_set_is_named_with_what_it_looks_like(
    tmp_path: Path, values: tuple[int, int], depth: int, eight_bit: int, factor: int
) -> None:
    said, notes = prepared(tmp_path, {"a": values[0], "b": values[1]})
    expected = (
        f"warning: the set is dark: the brightest value of 4 16-bit pictures is {values[0]:,} of "
        f"65,535, which looks like {depth}-bit pixels in 16-bit files; they are stored as they "
        f"are, at most {eight_bit} of 255; multiply them by {factor} and prepare again"
    )
    assert notes == [expected] and expected in said.splitlines()


def test_one_picture_that_is_bright_enough_will_do(tmp_path: Path) -> None:
    said, notes = prepared(tmp_path, {"a": 4095, "b": 20_000}, "tif")
    assert notes == [] and "dark" not in said
