"""What pages hold, without a browser."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from torchvision import models

from adafilter_dist.__main__ import main
from adafilter_dist.evaluate.wilson import wilson
from adafilter_dist.recipe import load_recipe
from adafilter_dist.report.page import charts, vega
from adafilter_dist.report.page.blocks import Figure, Note, Section
from adafilter_dist.report.page.charts import thinned
from adafilter_dist.report.page.charts.bars import stacked
from adafilter_dist.report.page.charts.cells import heat_map
from adafilter_dist.report.page.charts.styles import NAME_PIXELS, NAME_WIDTH
from adafilter_dist.report.page.gates import color_range, deciding
from adafilter_dist.report.page.intervals import span
from adafilter_dist.report.page.recipe_tables import changed_keys
from adafilter_dist.report.page.run_record import read_record
from adafilter_dist.report.page.single import page_at_the_end, page_of
from adafilter_dist.run.files import RunFiles
from tests.report.page.made_up import HOSTILE, made_up_run

MOST = 5 * 2**20


def text_of(path: Path) -> str:
    """What a reader of the tables sees, in one line."""
    body = path.read_text().partition("<body>")[2].partition("<script>")[0]
    body = re.sub(r"<script.*?</script>", " ", body, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_groups_of_points_differ_by_shape_as_well_as_by_colour() -> None:
    rows = [{"name": g, "v": 1.0, "low": 0.0, "high": 2.0, "group": g} for g in ("run", "control")]
    spec = charts.intervals(rows, "x", colors=[("run", "blue"), ("control", "red")])
    shape, color = (spec["layer"][1]["encoding"][of] for of in ("shape", "color"))
    assert len(set(shape["scale"]["range"][:2])) == 2
    # Vega-Lite merges two legends that are alike: one of both.
    assert shape["legend"] == color["legend"] and shape["scale"]["domain"] == ["run", "control"]


def test_times_are_read_at_a_glance() -> None:
    assert [span(s) for s in (42.4, 600, 12000)] == ["42 s", "10 min", "3 h 20 min"]


def test_layers_decide_by_what_has_most_variance() -> None:
    assert deciding(0.1, 0.05) == "by class"
    assert deciding(0.05, 0.1) == "by picture"
    assert deciding(0.004, 0.005) == deciding(-0.001, 0.0) == "hardly at all"


def test_long_curves_are_thinned_to_means() -> None:
    kept = thinned([(step, float(step)) for step in range(1, 8001)])
    assert len(kept) == 400 and kept[0] == (20, 10.5) and kept[-1][0] == 8000
    assert thinned([(1, 2.0)]) == [(1, 2.0)]


def test_keys_are_told_that_are_not_at_their_defaults() -> None:
    recipe = load_recipe(["recipe=food101", "optim.lr=0.5", "method=l2sp", "augment.flip=0.25"])
    changed = {key: (value, default) for key, value, default in changed_keys(recipe)}
    assert changed["optim.lr"] == (0.5, 0.01) and changed["augment.flip"] == (0.25, 0.5)
    assert changed["method.name"] == ("l2sp", "adafilter")
    assert changed["data.name"] == ("food101", None)  # it has no default
    assert "optim.momentum" not in changed and "method.gate.mode" not in changed
    plain = {key for key, _, _ in changed_keys(load_recipe(["recipe=food101"]))}
    assert "method.name" not in plain


def test_a_narrow_figure_alone_in_its_row_is_wide() -> None:
    def figure(id: str) -> Figure:
        return Figure(id, "", {}, "")

    blocks = [*map(figure, "abc"), Note(""), figure("d"), figure("e"), figure("f")]
    placed = Section("s", "", blocks).balanced()
    assert [each.id for each in placed if isinstance(each, Figure) and each.wide] == ["c", "f"]


def test_the_page_tells_what_was_run_and_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_up_run(tmp_path / "run", words=["optim.lr=0.03"])
    assert main(["report", str(run)]) == 0
    page = RunFiles(run).page
    assert capsys.readouterr().out.split() == [str(page)]
    assert page.stat().st_size < MOST
    text = text_of(page)
    numbers = json.loads(RunFiles(run).summary_numbers.read_text())
    top1 = numbers["evaluation"]["top1"]
    low, high = wilson(round(400 * top1), 400)
    assert f"top-1 accuracy {100 * top1:.1f} % {100 * low:.1f} to {100 * high:.1f} %" in text
    assert "optim.lr 0.03 0.01" in text
    assert "restarts 2 9 steps lost" in text and "PyTorch 2.15" in text
    # Between attempts it waited an hour, which is no time of the run; nor are times of files.
    assert "time of all attempts 5 min 300 steps" in text
    assert "2 2026-11-28 01:00:00 2026-11-28 01:01:50" in text
    assert "went on at step 90, 200" in text
    assert "2 by picture, 2 by class, 2 hardly at all" in text
    assert "control: plain fine-tuning" in text and "another picture's, same class" in text
    # What a newcomer cannot know.
    assert "another picture's, another class the choice for a picture of another class" in text
    # The worst confusion, by the names of its classes.
    confusion = np.array(numbers["evaluation"]["confusion"])
    np.fill_diagonal(confusion, 0)
    i, j = np.unravel_index(confusion.argmax(), confusion.shape)
    worst = f"{HOSTILE[i]} {HOSTILE[j]} {confusion[i, j]} "
    assert " ".join(worst.split()) in text
    # The pictures are nowhere, and the page says so; their names are no HTML.
    assert "the prepared data of this run are not on this machine" in text
    assert "window.hacked = 1</script>" not in page.read_text()


def test_a_page_made_at_the_end_of_the_last_attempt_does_not_say_that_the_run_goes_on(
    tmp_path: Path,
) -> None:
    run = made_up_run(tmp_path / "run")
    files = RunFiles(run)
    status = json.loads(files.status.read_text())
    files.status.write_text(json.dumps({**status, "state": "running"}))
    assert main(["report", str(run)]) == 0
    assert "trained and tested; running when this page was made 2 restarts" in text_of(files.page)


def test_gates_that_are_all_the_same_are_no_empty_chart(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", accuracy=2.0)
    files = RunFiles(run)
    numbers = json.loads(files.summary_numbers.read_text())
    for layer in numbers["gates"]["layers"]:
        layer.update(variance=0.0, between=0.0, mean=1.0)
    files.summary_numbers.write_text(json.dumps(numbers))
    assert main(["report", str(run)]) == 0
    text = text_of(files.page)
    assert "What the layers decide by" not in text
    assert "Each gate chose the same filter for all test pictures" in text
    assert "Worst confusions" not in text and "No picture of the test set was wrong" in text
    # Colours that mean 0 to 100 %, and no share above that.
    assert color_range(np.ones((3, 2))) == (0, 1)
    assert color_range(np.array([[0.41, 0.49]])) == pytest.approx((0.4, 0.5))


def test_layers_of_different_networks_are_compared_by_name(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / "one"), made_up_run(tmp_path / "two", words=["name=birds"])]
    files = RunFiles(runs[1])
    numbers = json.loads(files.summary_numbers.read_text())
    for i, layer in enumerate(numbers["gates"]["layers"]):
        layer.update(name=f"stem.{i}", mean=0.25)
    files.summary_numbers.write_text(json.dumps(numbers))
    out = tmp_path / "compared.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    text = text_of(out)
    assert "birds: AdaFilter, seed 0" in text
    assert "2 stem.1 25.0 %" in text
    # A layer of the first run has no figure of the second.
    assert re.search(r"2 layer1\.0\.conv2 \d+\.\d % \d layer", text)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run")
    files = RunFiles(run)
    files.test_pictures.unlink()
    assert main(["report", str(run)]) == 0
    assert f"To write it: adafilter evaluate {run}" in text_of(files.page)
    files.test_outcomes.unlink()
    files.summary_numbers.unlink()
    files.environment.write_text("{")
    assert main(["report", str(run)]) == 0
    text = text_of(files.page)
    assert (
        "Not tested on the test set. To measure it once there is a best model: adafilter " in text
    )
    assert "environment.json is damaged" in text
    assert "cross entropy" in files.page.read_text()  # the curves are there


def test_a_run_of_another_method_has_no_gates(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", words=["method=l2sp"], domains=())
    files = RunFiles(run)
    numbers = json.loads(files.summary_numbers.read_text())
    files.summary_numbers.write_text(json.dumps({**numbers, "gates": None}))
    (gates,) = (s for s in page_of(read_record(run)).sections if s.id == "gates")
    assert [b.text for b in gates.blocks if isinstance(b, Note)] == ["L2-SP has no gates."]


def test_runs_are_compared_picture_by_picture(tmp_path: Path) -> None:
    base = [
        made_up_run(tmp_path / f"base{s}", words=["method=finetune"], seed=s, accuracy=0.6)
        for s in range(3)
    ]
    ours = [made_up_run(tmp_path / f"ours{s}", seed=s, accuracy=0.6) for s in range(3)]
    out = tmp_path / "compared.html"
    assert main(["report", str(base[0]), str(ours[0]), "--out", str(out)]) == 0
    text = text_of(out)
    assert out.stat().st_size < MOST
    # The same draws: not one picture differs.
    line = "AdaFilter, seed 0 minus plain fine-tuning, seed 0 +0.00 +0.0 to +0.0 0 0 400 1"
    assert line in text
    assert "method.name finetune adafilter" in text
    better = made_up_run(tmp_path / "better", seed=0, accuracy=0.8, words=["optim.lr=0.02"])
    assert main(["report", *map(str, (*base, *ours, better)), "--out", str(out)]) == 0
    text = text_of(out)
    assert "AdaFilter, 3 seeds minus plain fine-tuning, 3 seeds +0.00" in text
    runs = [read_record(better).outcomes, read_record(base[0]).outcomes]
    mine, its = [each.correct for each in runs if each is not None]
    gained = int((mine & ~its).sum())
    assert re.search(rf"\(better\) minus plain fine-tuning, 3 seeds \+\d.* {gained} 0 400 1", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: not a run folder"),
        (["recipe=demo"], "expected a run's folder"),
        (["{run}", "{run}"], "the same run is named twice"),
        (["{run}", "--out", "{run}"], "a folder; name a file"),
        (["{run}", "--out", "{run}/none/page.html"], "no such folder"),
    ],
)
def test_what_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    run = made_up_run(tmp_path / "run")
    assert main(["report", *(word.format(run=run) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_its_packages_a_run_ends_without_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_up_run(tmp_path / "run")
    recipe = read_record(run).recipe

    with monkeypatch.context() as without:
        without.setitem(sys.modules, "jinja2", None)
        assert page_at_the_end(run, recipe, Console()) is None
        assert "no page: a page needs vl-convert-python and Jinja2" in capsys.readouterr().out
        assert main(["report", str(run)]) == 2
        assert "pip install 'adafilter-dist[report]'" in capsys.readouterr().err

    def broken() -> str:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(vega, "script", broken)
    assert page_at_the_end(run, recipe, Console()) is None
    told = capsys.readouterr()
    assert "a fault of ours" in told.err and f"adafilter report {run}" in told.out
    assert not RunFiles(run).page.exists()


@pytest.mark.slow
def test_the_libraries_are_put_together_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAFILTER_CACHE", str(tmp_path))
    first = vega.script()
    assert "vegaEmbed" in first and "</script" not in first
    (kept,) = (tmp_path / "vega").iterdir()
    kept.write_text("kept")
    assert vega.script() == "kept"


def test_the_longest_name_of_a_layer_is_not_cut() -> None:
    letters = max(len(name) for name, _ in models.densenet121().named_modules())
    rows = [{"name": "n", "part": "p", "v": 0.1, "o": 0, "say": ""}]
    map_of = heat_map(
        {"x": [], "y": [], "v": []}, x="", y="", value="", rows=[], across=[], domain=(0.0, 1.0)
    )
    for spec in (map_of, stacked(rows, ["n"], "", "")):
        axis = spec["encoding"]["y"]["axis"]
        # A letter of a sans serif is 0.6 of its height at most, on average.
        assert axis["labelLimit"] == NAME_WIDTH
        assert 0.6 * axis["labelFontSize"] * letters <= NAME_PIXELS
