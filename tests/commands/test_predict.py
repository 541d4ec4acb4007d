"""`adafilter predict` with a real model and real pictures."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adafilter_dist import load
from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.models.gating.gate_overrides import observe_gates
from adafilter_dist.recipe import load_recipe
from adafilter_dist.report.outcomes import read_test_outcomes
from adafilter_dist.run.files import CLASS_GATES
from tests.shared.small_run import small_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = tmp_path_factory.mktemp("pictures")
    return small_run(pictures, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def pictures(run_dir: Path) -> Path:
    root = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"]).data.root
    assert root is not None
    return root


@pytest.fixture
def some(pictures: Path, tmp_path: Path) -> Path:
    """A folder with a good picture, a broken one and a good one."""
    good = sorted((pictures / "test").rglob("*.png"))[:2]
    (tmp_path / "some").mkdir()
    shutil.copy(good[0], tmp_path / "some" / "a.png")
    content = good[0].read_bytes()
    (tmp_path / "some" / "b.png").write_bytes(content[: len(content) // 2])
    shutil.copy(good[1], tmp_path / "some" / "c.png")
    return tmp_path / "some"


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def shares_of(model: Any, x: torch.Tensor) -> list[float]:
    """Shares of fine-tuned filters by layer, for one picture."""
    shares: list[float] = []
    with torch.no_grad(), observe_gates(model, lambda i, n, g, p: shares.append(float(g.mean()))):
        model(x)
    return shares


def test_it_says_what_the_model_and_evaluation_say(
    run_dir: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(pictures / "test"), "--format", "jsonl", "--batch", "3", "--top", "9"]
    assert main(["predict", str(run_dir), *words]) == 0
    shown = capsys.readouterr()
    rows = json_lines(shown.out)
    assert "10 pictures in" in shown.err and "images/s" in shown.err
    model, transform = load(run_dir)
    for row in rows:
        with torch.no_grad():
            expected = model(transform(row["picture"])[None]).double().softmax(1)[0]
        best = row["predictions"]
        assert [model.classes.index(each["class"]) for each in best] == list(
            expected.argsort(descending=True)
        )
        for each in best:
            share = float(expected[model.classes.index(each["class"])])
            assert each["probability"] == pytest.approx(share, abs=1e-5)

    assert main(["evaluate", str(run_dir), "--no-gates"]) == 0
    outcomes = read_test_outcomes(run_dir)
    said = [row["predictions"][0]["class"] for row in rows]
    assert said == [outcomes.classes[number] for number in outcomes.predictions]


def test_a_bad_picture_is_reported_and_passed_over(
    run_dir: Path, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert main(["predict", str(run_dir), str(some), "--format", "csv", "--out", str(out)]) == 3
    shown = capsys.readouterr()
    assert not shown.out
    (reported,) = [line for line in shown.err.splitlines() if line.startswith("passed over: ")]
    assert str(some / "b.png") in reported
    assert "2 pictures in" in shown.err and "1 passed over" in shown.err
    rows = list(csv.DictReader(out.open()))
    assert [Path(row["picture"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert [bool(row["class_1"]) for row in rows] == [True, False, True]
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "some"}


def test_a_list_on_standard_input_in_its_order(
    run_dir: Path,
    some: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = f"{some / 'c.png'}\n{some / 'gone.png'}\n{some / 'a.png'}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(listed))
    assert main(["predict", str(run_dir / "best"), "-", "--format", "jsonl"]) == 3
    rows = json_lines(capsys.readouterr().out)
    assert [Path(row["picture"]).name for row in rows] == ["c.png", "gone.png", "a.png"]
    assert rows[1]["error"] == "no such file" and "error" not in rows[2]


def test_a_picture_is_explained_by_its_gates_and_its_class(
    run_dir: Path, some: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(run_dir), str(some / "a.png"), str(some / "c.png"), "--explain"]
    assert main([*words, "--format", "jsonl"]) == 0
    rows = json_lines(capsys.readouterr().out)

    # By hand: the exact network on the picture, and on the validation pictures.
    model, transform = load(run_dir)
    filters = [layer.conv.out_channels for layer in model.gated_layers.values()]
    recipe = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"])
    prepared = open_prepared(recipe)
    from adafilter_dist.data.stored.store import Store

    path, records, labels = prepared.split("val")
    store = Store(path)
    shares = np.array([shares_of(model, transform(store.read(int(r)))[None]) for r in records])
    for row in rows:
        own = np.array(shares_of(model, transform(row["picture"])[None]))
        gates = row["gates"]
        assert list(gates["layers"]) == list(model.gated_layers)
        assert list(gates["layers"].values()) == pytest.approx(own, abs=0.02)
        assert gates["tuned"] == pytest.approx(np.average(own, weights=filters), abs=0.01)
        of_class = shares[labels == prepared.classes.index(row["predictions"][0]["class"])]
        mean = of_class.mean(0)
        expected = np.average(np.abs(own - mean), weights=filters)
        assert gates["distance"] == pytest.approx(expected, abs=0.01) and expected > 0
        usual = np.average(np.abs(of_class - mean), weights=filters, axis=1).mean()
        assert gates["usual_distance"] == pytest.approx(usual, abs=0.01)

    # Measured once, and again for other weights.
    kept = run_dir / CLASS_GATES
    before = kept.stat().st_mtime_ns
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    lines = shown.splitlines()
    assert len(lines) == 6
    for row, (_, used, compared) in zip(rows, (lines[:3], lines[3:]), strict=True):
        gates, name = row["gates"], row["predictions"][0]["class"]
        assert used.startswith(f"    {gates['tuned']:.0%} of its filters are fine-tuned, ")
        assert used.endswith(" of 15") and "mostly fine-tuned: layers " in used
        assert compared == (
            f"    pictures of {name}: {gates['class_tuned']:.0%} on average. By layer this picture "
            f"is {100 * gates['distance']:.0f} points from that average, theirs are "
            f"{100 * gates['usual_distance']:.0f}"
        )


def test_an_export_without_class_figures_says_so(
    run_dir: Path, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir / "best", tmp_path / "model")
    words = ["predict", str(tmp_path / "model"), str(some / "a.png"), "--explain"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "distances from classes are not known" in shown.err and "1 picture in" in shown.err
    assert "filters are fine-tuned" in shown.out and "points from" not in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "a.png"], "neither a run"),
        (["{unfinished}/..", "{some}"], "unfinished/../unfinished"),
        (["{run}", "gone.png"], "no such file"),
        (["{run}", "https://example.org/a.png"], "a URL"),
        (["{run}", "{run}/best"], "no pictures in it; there are 1 .json, 1 .safetensors"),
        (["{run}", "{some}", "--top", "0"], "--top 0: at least 1"),
        (["{run}", "{some}", "--device", "cuda"], "no CUDA device"),
        (["{run}", "{some}", "--out", "{run}"], "a folder"),
        (["{run}", "{some}", "--out", "{some}/a.png"], "the name of a picture"),
        (["{run}", "{some}", "--fromat", "csv"], "did you mean --format?"),
        (["{unfinished}", "{some}"], "adafilter resume"),
    ],
)
def test_bad_words_are_one_line(
    run_dir: Path,
    some: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        return
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run_dir / "recipe.yaml", unfinished)
    given = [word.format(run=run_dir, some=some, unfinished=unfinished) for word in words]
    assert main(["predict", *given]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and said in errors[0]
