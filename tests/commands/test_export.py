"""`adafilter export` with a real model and real pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adafilter_dist import load
from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.export import write
from adafilter_dist.models.inference.selected_conv import InferenceNet, for_inference
from adafilter_dist.recipe import load_recipe
from adafilter_dist.training.run_data import keep_run_data
from tests.shared.small_run import small_run

# What trains, draws and submits, and writes ONNX: none of it is needed to load an export.
EXTRAS = ("timm", "lightning", "scipy", "matplotlib", "tensorboard", "submitit", "psutil", "ffcv")
EXPORTERS = ("onnx", "onnxscript", "onnx_ir")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = tmp_path_factory.mktemp("pictures")
    run = small_run(pictures, tmp_path_factory.mktemp("runs") / "small")
    keep_run_data(run, open_prepared(load_recipe([f"recipe={run / 'recipe.yaml'}"])))
    return run


@pytest.fixture(scope="module")
def pictures(run_dir: Path) -> list[Path]:
    root = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"]).data.root
    assert root is not None
    return sorted((root / "test").rglob("*.png"))


def logits(path: Path, pictures: list[Path]) -> torch.Tensor:
    model, transform = load(path)
    with torch.no_grad():
        return torch.cat([model(transform(picture)[None]) for picture in pictures])


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main(["export", *words]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    (line,) = errors
    return line


@pytest.mark.slow
@pytest.mark.parametrize("words", [["onnx", "--pixels"], ["torch"]], ids=" ".join)
def test_a_program_says_what_the_network_says(
    run_dir: Path,
    pictures: list[Path],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run_dir), "--to", *words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "checked      10 pictures of the test set: largest difference" in shown
    assert "the same class for 10" in shown and f"written      {out}" in shown
    assert len(list(out.iterdir())) == 3  # the program, config.json, README.md

    expected = logits(run_dir, pictures)
    for name in (*EXTRAS, *EXPORTERS):
        monkeypatch.setitem(sys.modules, name, None)
    own = logits(out, pictures)
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3)
    assert load(out)[0].classes == load_classes(run_dir)
    form = ["--format", "jsonl", "--batch", "4"]
    assert main(["predict", str(out), *map(str, pictures), *form]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    best = [load_classes(run_dir)[number] for number in expected.argmax(1)]
    assert [row["predictions"][0]["class"] for row in rows] == best
    if words[0] == "onnx":
        model, _ = load(out)
        about = model.session.get_modelmeta().custom_metadata_map
        assert json.loads(about["classes"]) == load_classes(run_dir)
        (given,), (result,) = model.session.get_inputs(), model.session.get_outputs()
        assert given.name == ("pixels" if "--pixels" in words else "images")
        assert (given.shape[0], result.name, result.shape) == ("batch", "logits", ["batch", 2])
        assert str(Path.cwd()).encode() not in (out / "model.onnx").read_bytes()


def load_classes(run: Path) -> list[str]:
    classes: list[str] = json.loads((run / "best" / "config.json").read_text())["classes"]
    return classes


@pytest.mark.slow
def test_a_wrong_program_is_not_left_behind(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(net: Any) -> InferenceNet:
        """The network with another bias."""
        other = for_inference(net)
        with torch.no_grad():
            other.backbone.fc.bias[0] += 0.05  # type: ignore[union-attr,operator,index]
        return other

    monkeypatch.setattr(write, "for_inference", wrong)
    out = tmp_path / "out"
    line = refused(capsys, str(run_dir), "--to", "onnx", "--out", str(out), code=1)
    assert "logits differ by up to 0.05" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_come_with_card_and_class_figures(
    run_dir: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_dir), "--no-gates"]) == 0
    assert main(["export", str(run_dir), "--to", "safetensors"]) == 0
    out = run_dir / "export" / "safetensors"
    assert torch.equal(logits(out, pictures), logits(run_dir, pictures))
    card = (out / "README.md").read_text()
    top1 = json.loads((run_dir / "evaluation-test.json").read_text())["evaluation"]["top1"]
    assert f"| test, top-1 | {top1:.1%} |" in card
    recipe = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"])
    for part in (open_prepared(recipe).fingerprint, "24 train"):
        assert part in card
    assert "random weights" in card and "your own pictures" in card and "global_batch: 8" in card
    capsys.readouterr()
    assert main(["predict", str(out), str(pictures[0]), "--explain"]) == 0
    shown = capsys.readouterr()
    assert "points from" in shown.out and "not known" not in shown.err
    # A second time in its place, and from the export itself.
    assert main(["export", str(run_dir), "--to", "safetensors"]) == 0
    again = out.with_name("again")
    assert main(["export", str(out), "--to", "safetensors", "--out", str(again)]) == 0
    assert torch.equal(logits(again, pictures), logits(run_dir, pictures))


@pytest.mark.slow
def test_the_compact_form_and_pictures_of_ones_own(
    run_dir: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    to = ["--to", "onnx", "--out", str(tmp_path / "out")]
    assert f"adafilter compact {run}" in refused(capsys, str(run), "--compact", *to)
    assert main(["compact", str(run)]) == 0
    own = ["--pictures", str(pictures[0].parent.parent)]
    assert main(["export", str(run), "--compact", *to, *own]) == 0
    assert "of 10 files" in capsys.readouterr().out
    expected = logits(run / "compact", pictures)
    torch.testing.assert_close(logits(tmp_path / "out", pictures), expected, rtol=1e-3, atol=1e-3)
    assert "before compacting" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--to", "onnx"], "neither a run"),
        (["{run}", "--to", "onnxx"], "invalid choice"),
        (["{run}"], "--to"),
        (["{run}", "--to", "safetensors", "--pixels"], "no input of their own"),
        (["{run}", "--to", "torch", "--images", "0"], "at least 1"),
        (["{run}", "--to", "torch", "--out", "{run}"], "that is what is read"),
        (["{run}", "--to", "torch", "--out", "{other}"], "no export; name another folder"),
        (["{run}", "--to", "torch", "--out", "{model}"], "no export; name another folder"),
        (["{alone}", "--to", "torch", "--out", "{run}/best"], "the best model of a run"),
        (["{alone}", "--to", "torch"], "name some: --pictures FOLDER"),
        (["{alone}", "--to", "torch", "--compact"], "name the run of"),
    ],
)
def test_bad_words_are_one_line(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    shutil.copytree(run_dir / "best", tmp_path / "alone")
    (tmp_path / "model").mkdir()  # of another library
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["ResNet"]}')
    places = {"run": run_dir, **{name: tmp_path / name for name in ("other", "alone", "model")}}
    assert said in refused(capsys, *[word.format(**places) for word in words])


@pytest.mark.parametrize("module", ["onnxscript", "onnxruntime"])
def test_what_is_not_installed_is_one_line(
    run_dir: Path,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(capsys, str(run_dir), "--to", "onnx")
    assert line.endswith(f"{module} is not installed: pip install 'adafilter-dist[export]'")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_line_and_no_half_file(
    run_dir: Path, pictures: list[Path], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def errors(*words: str) -> list[str]:
        assert main(list(words)) == 2
        return [line for line in capsys.readouterr().err.splitlines() if "space left" in line]

    run, out = str(run_dir), small_disk / "out"
    (line,) = errors("export", run, "--to", "safetensors", "--out", str(out))
    assert line.startswith(f"error: --out {out}: cannot be written: No space left on device")
    assert list(small_disk.iterdir()) == []
    (line,) = errors("report", run, "--out", str(out))
    assert line.startswith(f"error: {out}: cannot be written (No space left on device)")
    assert list(small_disk.iterdir()) == []
    (small_disk / "other").write_bytes(bytes(64 << 10))
    (line,) = errors("predict", run, str(pictures[0]), "--out", str(out))
    assert line.startswith(f"error: --out {out}: cannot be written: No space left on device")
    assert [path.name for path in small_disk.iterdir()] == ["other"]
