"""`adafilter evaluate` on a run folder with a real model, real pictures and no training."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from adafilter_dist import load
from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import dump_recipe, load_recipe
from adafilter_dist.report.outcomes import read_test_outcomes
from adafilter_dist.report.test_pictures import read_test_pictures
from adafilter_dist.run.files import RunFiles
from adafilter_dist.training.run_data import keep_run_data
from tests.shared.small_run import small_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best model is a freshly converted ResNet-18."""
    pictures = tmp_path_factory.mktemp("pictures")
    return small_run(pictures, tmp_path_factory.mktemp("runs") / "small")


def figures(run_dir: Path, split: str = "test") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / f"evaluation-{split}.json").read_text())
    return found


@pytest.mark.slow
def test_the_best_model_is_measured(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--probe"]) == 0
    found = figures(run_dir)
    recipe = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"])
    assert recipe.data.root is not None
    model, transform = load(run_dir)
    confusion = torch.zeros(2, 2, dtype=torch.int64)
    for label, name in enumerate(open_prepared(recipe).classes):
        for path in (recipe.data.root / "test" / name).iterdir():
            with torch.no_grad(), Image.open(path) as picture:
                confusion[label, model(transform(picture)[None]).argmax()] += 1
    assert int(confusion.sum()) == found["evaluation"]["n"] == 10
    assert found["evaluation"]["confusion"] == confusion.tolist()
    assert len(found["gates"]["layers"]) == 15
    kept = read_test_pictures(run_dir)
    assert kept is not None and kept.gates is not None
    assert kept.data == open_prepared(recipe).fingerprint and kept.confidences.shape == (10,)
    assert (kept.confidences >= 0.5).all() and (kept.confidences <= 1).all()  # of two classes
    assert kept.gates.fine_tuned.shape == (10, 15)
    for shares, layer in zip(kept.gates.shares().T, found["gates"]["layers"], strict=True):
        assert shares.mean() == pytest.approx(layer["mean"])
    assert found["probe"]["test"]["n"] == 10 and found["probe"]["train_images"] == 24
    shown = capsys.readouterr().out
    assert "another picture's gates" in shown and "linear probe" in shown
    assert "adafilter resume" not in shown
    assert f"numbers     {run_dir / 'evaluation-test.json'}" in shown.splitlines()
    assert shown.index("AdaFilter") < shown.index("\ngates ")
    assert "layer4.0.conv2" not in shown  # freshly converted, it is like the others
    assert main(["evaluate", str(run_dir), "--gates"]) == 0
    assert "layer4.0.conv2" in capsys.readouterr().out


def test_validation_without_gates_by_the_recipes_words(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"recipe={run_dir.parent / 'small.yaml'}", "--split", "val", "--no-gates"]
    assert main(words) == 0
    found = figures(run_dir, "val")
    assert (found["split"], found["evaluation"]["n"]) == ("val", 6)
    assert found["gates"] is None and found["probe"] is None
    assert "gate" not in capsys.readouterr().out


def test_the_outcome_of_each_test_picture_is_kept_once(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir / "best", run / "best")
    shutil.copy(run_dir / "recipe.yaml", run)
    kept = RunFiles(run).test_outcomes
    assert main(["evaluate", str(run), "--split", "val", "--no-gates"]) == 0
    with pytest.raises(UserError, match=f"is missing.*adafilter evaluate {run}"):
        read_test_outcomes(run)
    assert main(["evaluate", str(run), "--no-gates"]) == 0
    outcomes, found = read_test_outcomes(run), figures(run)["evaluation"]
    confusion = np.zeros((2, 2), int)
    np.add.at(confusion, (outcomes.labels, outcomes.predictions), 1)
    assert confusion.tolist() == found["confusion"]
    assert outcomes.correct.mean() == found["top1"] and outcomes.losses.mean() == found["loss"]
    prepared = open_prepared(load_recipe([f"recipe={run / 'recipe.yaml'}"]))
    assert outcomes.data == prepared.fingerprint and outcomes.classes == prepared.classes
    assert outcomes.labels.tolist() == prepared.split("test")[2].tolist()
    stored = hashlib.sha256(prepared.test_store.read_bytes()).hexdigest()
    assert outcomes.test_pictures == stored
    # What is there stays, and damage is one line.
    kept.write_bytes(kept.read_bytes()[:50])
    assert main(["evaluate", str(run), "--no-gates"]) == 0
    with pytest.raises(UserError, match="is damaged"):
        read_test_outcomes(run)


def test_what_trained_the_run_need_not_be_there(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    shutil.copytree(run_dir / "best", tmp_path / "best")
    trained = load_recipe([f"recipe={run_dir / 'recipe.yaml'}", "engine=deepspeed"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(trained))
    assert main(["evaluate", str(tmp_path), "--split", "val", "--no-gates"]) == 0
    assert figures(tmp_path, "val")["evaluation"]["n"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "not a run folder"),
        (["{run}", "optim.lrr=1"], "optim.lrr: unknown key"),
        (["{run}", "data.val_fraction=0", "--split", "val"], "val_fraction=0"),
        (["recipe={run}/recipe.yaml", "run_dir=elsewhere"], "train it first"),
    ],
)
def test_bad_words_are_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["evaluate", *[word.format(run=run_dir) for word in words]]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and said in errors[0]


def test_a_run_without_a_best_model_says_how_to_get_one(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run_dir / "recipe.yaml", tmp_path / "recipe.yaml")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert f"adafilter resume {tmp_path}" in capsys.readouterr().err


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the run, which knows its data, and the folder of its own copy of the pictures."""
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    recipe = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"])
    assert recipe.data.root is not None
    shutil.copytree(recipe.data.root, pictures)
    shutil.copytree(run_dir / "best", run / "best")
    own = load_recipe([f"recipe={run_dir / 'recipe.yaml'}", f"data.root={pictures}"])
    (run / "recipe.yaml").write_text(dump_recipe(own))
    keep_run_data(run, open_prepared(own))
    return run, pictures


def prepare_again(run: Path, *words: str) -> None:
    assert main(["prepare", f"recipe={run / 'recipe.yaml'}", *words]) == 0


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with exit code 2."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("verb", ["evaluate", "compact"])
@pytest.mark.parametrize("known", ["by data.json", "by its model"])
def test_other_classes_than_the_runs_are_refused(
    copied: tuple[Path, Path], verb: str, known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pictures = copied
    if known == "by its model":  # a run of the first release without a checkpoint
        (run / "data.json").unlink()
    one = min(path.name for path in (pictures / "train").iterdir())
    for split in ("train", "test"):
        (pictures / split / one).rename(pictures / split / "zebra")
    prepare_again(run)
    line = one_line([verb, str(run)], capsys)
    assert f"no class {one} any more, class zebra not known to the run" in line
    assert "--other-data" not in line  # which would be refused too
    for split in ("train", "test"):  # one class more
        shutil.copytree(pictures / split / "zebra", pictures / split / one)
    prepare_again(run)
    line = one_line([verb, str(run)], capsys)
    assert ": class zebra not known to the run" in line and str(run) in line
    if verb == "evaluate":
        assert "zebra not known" in one_line([verb, str(run), "--other-data"], capsys)
    assert not list(run.glob("evaluation-*")) and not (run / "compact").exists()


def test_other_pictures_than_the_runs_are_measured_when_asked_for(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, pictures = copied
    words = ["evaluate", str(run), "--no-gates"]
    assert main(words) == 0
    own = figures(run)
    victim = next((pictures / "test").rglob("*.*"))
    victim.unlink()
    prepare_again(run)
    line = one_line(words, capsys)
    assert "pictures, labels or how they are stored (fingerprint " in line
    assert "--other-data" in line and str(run) in line
    assert "adafilter compact" in one_line(["compact", str(run)], capsys)
    assert main([*words, "--other-data"]) == 0
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}"])
    name = f"test-{open_prepared(recipe).fingerprint[:8]}"
    assert figures(run, name)["evaluation"]["n"] == own["evaluation"]["n"] - 1
    assert figures(run) == own


@pytest.mark.slow
def test_a_control_runs_accuracy_is_subtracted_picture_by_picture(
    run_dir: Path, copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = copied
    path = run / "best" / "model.safetensors"
    state = safetensors.torch.load_file(path)
    (key,) = (key for key in state if key.endswith("fc.bias"))
    state[key] = torch.tensor([100.0, 0])  # whatever it sees, it says the first class
    safetensors.torch.save_file(state, path)
    words = ["evaluate", str(run_dir), "--no-gates", "--control"]
    assert main([*words, str(run)]) == 0
    found = figures(run_dir)
    first = sum(found["evaluation"]["confusion"][0]) / 10
    control = found["control"]
    assert (control["run"], control["n"], control["top1"]) == (str(run), 10, first)
    less = found["evaluation"]["top1"] - first
    assert control["run_minus_control"]["value"] == pytest.approx(less)
    assert "control: AdaFilter, run" in capsys.readouterr().out
    assert main([*words, str(run_dir)]) == 0
    own = figures(run_dir)["control"]["run_minus_control"]
    found = figures(run_dir)["control"]["gates"]
    assert main(["evaluate", str(run_dir)]) == 0
    assert found == figures(run_dir)["gates"]["figures"]
    assert own == {"value": 0, "standard_error": 0, "low": 0, "high": 0}
    main(["evaluate", str(run_dir), "--no-gates"])
    assert figures(run_dir)["control"] is None


def test_what_cannot_be_a_control_is_one_line(
    run_dir: Path, copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, pictures = copied
    words = ["evaluate", str(run_dir), "--no-gates", "--control"]
    assert "no run folder" in one_line([*words, str(pictures)], capsys)
    next((pictures / "test").rglob("*.*")).unlink()
    prepare_again(run)
    (run / "data.json").unlink()
    keep_run_data(run, open_prepared(load_recipe([f"recipe={run / 'recipe.yaml'}"])))
    line = one_line([*words, str(run)], capsys)
    assert "other data" in line and "fingerprint" in line
    shutil.rmtree(run / "best")
    assert "no best model" in one_line([*words, str(run)], capsys)


def test_pictures_may_have_moved_since(copied: tuple[Path, Path]) -> None:
    run, pictures = copied
    moved = pictures.rename(pictures.with_name("moved"))
    assert main(["evaluate", str(run), f"data.root={moved}", "--no-gates"]) == 0


def test_classes_in_another_order_are_told_apart_by_name(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = copied
    assert main(["evaluate", str(run), "--split", "val", "--no-gates"]) == 0
    before = figures(run, "val")["evaluation"]
    # The same model with its logits the other way round.
    weights, config = run / "best" / "model.safetensors", run / "best" / "config.json"
    state = safetensors.torch.load_file(weights)
    for name in ("weight", "bias"):
        (key,) = (key for key in state if key.endswith(f"fc.{name}"))
        state[key] = state[key].flip(0).contiguous()
    safetensors.torch.save_file(state, weights)
    told = json.loads(config.read_text())
    del told["sha256"]  # the edit is meant
    config.write_text(json.dumps(told | {"classes": told["classes"][::-1]}))
    assert main(["evaluate", str(run), "--split", "val", "--no-gates"]) == 0
    after = figures(run, "val")["evaluation"]
    assert after["top1"] == before["top1"] and after["loss"] == pytest.approx(before["loss"])
    assert after["confusion"] == [row[::-1] for row in before["confusion"]][::-1]
    assert "classes in another order" in one_line(["compact", str(run)], capsys)


def test_a_flipped_bit_is_told_before_it_is_measured_and_prepare_mends_it(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = copied
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}"])
    path = open_prepared(recipe).test_store
    content = path.read_bytes()
    words = [str(run), "--no-gates"]
    assert main(["evaluate", *words]) == 0
    for verb in ("evaluate", "compact"):
        place = path if verb == "evaluate" else path.with_name("train.beton")
        damaged = bytearray(place.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        place.write_bytes(damaged)
        line = one_line([verb, str(run)], capsys)
        assert line.startswith(f"error: {place} is damaged: its sha256 is not the recorded one")
        command = shlex.split(line.rpartition("run: adafilter ")[2])
        assert "data.verify=always" in command
        assert main([*command, "model.weights=null"]) == 0
        assert "preparing again" in capsys.readouterr().out
    assert path.read_bytes() == content
    assert main(["evaluate", *words]) == 0
