"""`adafilter compact` on a run folder with a real model, real pictures and no training."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adafilter_dist import load
from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.models.inference.selected_conv import InferenceNet
from adafilter_dist.recipe import load_recipe
from tests.shared.small_run import small_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = tmp_path_factory.mktemp("pictures")
    return small_run(pictures, tmp_path_factory.mktemp("runs") / "small")


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compacting.json").read_text())
    return found


def test_a_run_is_compacted(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    out = run_dir / "compact"
    assert f"written      {out}" in shown.splitlines()
    assert "may choose otherwise for up to 50% of other pictures" in shown
    found = figures(out)
    config = json.loads((out / "config.json").read_text())
    assert config["format"] == 3
    letters = "".join(config["compact"]["gates"].values())
    assert (found["calibration_images"], found["after"]["n"]) == (6, 10)
    assert found["filters"] == len(letters) == 1040
    assert found["dropped"] == sum(letter != "-" for letter in letters) > 0
    assert found["expected"] == 10 * found["dropped"]
    source, small = (folder / "model.safetensors" for folder in (run_dir / "best", out))
    assert small.stat().st_size < source.stat().st_size
    # Without the table of contents that safetensors puts in front.
    assert 0 < small.stat().st_size - found["bytes_after"] < 100_000
    assert f"{found['bytes_after'] / 1e6:.1f} MB after" in shown

    net, transform = load(run_dir)
    model, _ = load(out)
    assert isinstance(model, InferenceNet) and model.classes == net.classes
    recipe = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"])
    assert recipe.data.root is not None
    right = {"before": 0, "after": 0}
    others = 0
    for label, name in enumerate(net.classes):
        for path in (recipe.data.root / "test" / name).iterdir():
            with torch.no_grad(), Image.open(path) as picture:
                x = transform(picture)[None]
                right["before"] += int(net(x).argmax()) == label
                right["after"] += int(model(x).argmax()) == label
            for index, layer in enumerate(net.gate.names):
                bits = net.gate.decisions.gates[index][0].tolist()
                pattern = config["compact"]["gates"][layer]
                pairs = zip(pattern, bits, strict=True)
                others += sum(taken not in ("-", str(int(bit))) for taken, bit in pairs)
    for when, count in right.items():
        assert found[when]["top1"] == pytest.approx(count / 10)
    # A picture alone and in a batch may differ by rounding where a logit is almost zero.
    assert found["differing"] == pytest.approx(others, abs=3) and others > 0


def test_gates_that_stay_constant_change_nothing(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrated and measured on the same pictures."""
    words = ["--split", "val", "--report", "val", "--out", str(tmp_path / "small")]
    assert main(["compact", str(run_dir / "best"), *words]) == 0
    found = figures(tmp_path / "small")
    assert found["differing"] == 0 < found["expected"]
    assert found["before"]["top1"] == found["after"]["top1"]
    assert found["before"]["loss"] == pytest.approx(found["after"]["loss"], rel=1e-4)


def test_an_export_with_the_recipes_words_and_few_pictures(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir / "best", tmp_path / "model")
    words = [f"recipe={run_dir.parent / 'small.yaml'}", "--split", "train", "--images", "3"]
    assert main(["compact", str(tmp_path / "model"), *words]) == 0
    found = figures(tmp_path / "model-compact")
    assert (found["calibrated_on"], found["calibration_images"]) == ("train", 3)
    assert "3 pictures of train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "neither a run"),
        (["{run}", "--images", "0"], "at least 1"),
        (["{run}", "--out", "{run}/best"], "the export itself"),
        (["{run}", "--out", "{model}"], "no export; name another folder"),
        (["{alone}", "recipe={run}/recipe.yaml", "--out", "{run}/best"], "the best model of a run"),
        (["{run}", "data.val_fraction=0"], "--split val"),
        (["{alone}"], "does not know its pictures"),
        (["{run}", "optim.lrr=1"], "optim.lrr: unknown key"),
    ],
)
def test_bad_words_are_one_line(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    shutil.copytree(run_dir / "best", tmp_path / "alone")
    model = tmp_path / "model"  # of another library
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["ResNet"]}')
    places = {"run": run_dir, "alone": tmp_path / "alone", "model": model}
    given = [word.format(**places) for word in words]
    assert main(["compact", *given]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and said in errors[0]


def test_what_cannot_be_compacted(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = f"recipe={run_dir.parent / 'small.yaml'}"
    once = tmp_path / "once"
    assert main(["compact", str(run_dir), "--out", str(once), "--images", "2"]) == 0
    assert main(["compact", str(once), recipe]) == 2
    assert "compacted before" in capsys.readouterr().err
    shutil.copy(run_dir / "recipe.yaml", tmp_path / "recipe.yaml")
    assert main(["compact", str(tmp_path)]) == 2
    assert f"adafilter resume {tmp_path}" in capsys.readouterr().err


def test_a_sample_is_spread_over_the_split(run_dir: Path) -> None:
    whole = open_prepared(load_recipe([f"recipe={run_dir / 'recipe.yaml'}"]))
    _, records, labels = whole.split("train")
    for count in (1, 7, 23, len(records), 1000):
        path, taken, theirs = PreparedSubset.of(whole, count).split("train")
        assert len(set(taken)) == len(taken) == min(count, len(records))
        places = [list(records).index(record) for record in taken]
        assert list(labels[places]) == list(theirs) and path == whole.train_store
        gaps = {later - sooner for sooner, later in pairwise(places)}
        assert not gaps or max(gaps) - min(gaps) <= 1
