"""The table of a comparison says what its runs say, and what is missing."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from adafilter_dist.compare.console_table import print_results
from adafilter_dist.compare.figure import fit_axis
from adafilter_dist.compare.plan import Plan, final_run, trial_run
from adafilter_dist.compare.results import read_results, write_results
from adafilter_dist.compare.statistics import Estimate, holm, paired_difference
from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles
from tests.compare.folders import PICTURES, contender, outcomes, plan_in

NAMES = ("finetune", "adafilter", "adafilter-frozen", "linear_probe")
MARGINS = (1.5, 1.55, 0.7, 2.5)
WORDS = (f"methods={','.join(NAMES)}", "seeds=0..3", "tune=4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """AdaFilter like fine-tuning, the frozen gate below, the probe above; all finished."""
    folder = tmp_path_factory.mktemp("compare")
    plan = plan_in(folder, *WORDS)
    for name, margin in zip(NAMES, MARGINS, strict=True):
        contender(folder, plan, name, margin, 0.2 if name == "adafilter" else 0.1)
    write_results(folder)
    return folder, plan


def test_numbers_are_those_of_the_runs(whole: tuple[Path, Plan]) -> None:
    folder, plan = whole
    found = json.loads((folder / "results.json").read_text())
    assert (found["pictures"], found["missing"], found["planned"]) == (PICTURES, 0, 16)
    assert found["same_pictures"] and found["rank_seeds"] == [0, 1, 2, 3]
    right = {
        name: [outcomes(margin, 100 * n + seed).correct for seed in plan.seeds]
        for n, (name, margin) in enumerate(zip(NAMES, MARGINS, strict=True))
    }
    rows = {row["name"]: row for row in found["contenders"]}
    pairs = [paired_difference(right[n], right["finetune"], same_pictures=True) for n in NAMES[1:]]
    corrected = holm([pair.p or 0 for pair in pairs])
    for name, pair, p in zip(NAMES[1:], pairs, corrected, strict=True):
        row = rows[name]
        assert row["accuracy"]["value"] == pytest.approx(np.mean(right[name]))
        assert row["accuracy"]["seeds"] == 4
        assert row["difference"]["value"] == pytest.approx(pair.value)
        assert row["difference"]["low"] == pytest.approx(pair.low)
        assert row["p_corrected"] == pytest.approx(p)
        low, high = row["bootstrap"]
        assert low < pair.value < high
    assert rows["finetune"]["difference"] is None and rows["finetune"]["p_corrected"] is None
    assert rows["linear_probe"]["rank"] == {"value": 1.0, "low": 1, "high": 1}
    assert rows["adafilter-frozen"]["rank"] == {"value": 4.0, "low": 4, "high": 4}
    assert {rows[n]["rank"]["low"] for n in NAMES[:2]} == {2}
    assert rows["adafilter"]["cost"]["relative"]["step_seconds"] == pytest.approx(2)
    assert rows["adafilter"]["cost"]["relative"]["trained_parameters"] == 1


def test_the_first_sentence_says_who_is_above_and_below(whole: tuple[Path, Plan]) -> None:
    text = (whole[0] / "results.md").read_text()
    first = text.splitlines()[2]
    assert first.startswith("Above fine-tuning: linear probe (+"), first
    assert "Below fine-tuning: frozen random gate (-" in first
    assert "Not told apart from it: AdaFilter." in first and "for 3 comparisons" in first
    assert "## Missing" not in text and "![accuracies and differences](results.svg)" in text


def test_what_tuning_chose_and_that_it_is_the_edge(whole: tuple[Path, Plan]) -> None:
    folder, plan = whole
    found = json.loads((folder / "results.json").read_text())["contenders"][1]["tuning"]
    best = max(range(4), key=lambda k: plan.design[k][0])
    assert found["chosen"] == plan.contender("adafilter").settings(plan.design[best])
    validations = [0.5 + 0.2 * point[0] for point in plan.design]
    assert found["best"] == pytest.approx(max(validations))
    assert found["median"] == pytest.approx(np.median(validations))
    assert (found["planned"], found["finished"], found["near"]) == (4, 4, 1)
    rate = found["chosen"]["optim.lr"]
    assert f"optim.lr={rate:g} is the highest that was tried" in found["edges"]
    assert f"AdaFilter: optim.lr={rate:g} is the highest" in (folder / "results.md").read_text()


def test_the_console_says_the_same(whole: tuple[Path, Plan]) -> None:
    place = Console(file=io.StringIO(), width=120)
    print_results(place, read_results(whole[0]), whole[0])
    assert isinstance(place.file, io.StringIO)
    text = place.file.getvalue()
    table = (whole[0] / "results.md").read_text()
    cells = [line.split("|")[2].strip() for line in table.splitlines() if "| base |" in line]
    assert cells and cells[0] in text and "Above fine-tuning: linear probe" in text
    assert "4 seeds, 300 test pictures" in text and "missing" not in text
    assert text.splitlines()[-1] == f"results     {whole[0] / 'results.md'}"


def test_csv_and_figure(whole: tuple[Path, Plan]) -> None:
    folder, _ = whole
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["name"] for row in rows] == list(NAMES)
    assert rows[0]["difference_value"] == "" and float(rows[2]["difference_high"]) < 0
    assert float(rows[1]["step_seconds_relative"]) == pytest.approx(2)
    assert float(rows[1]["tuning_best"]) > float(rows[1]["tuning_worst"])
    assert rows[1]["tuning_planned"] == rows[1]["tuning_finished"] == "4"
    with Image.open(folder / "results.png") as picture:
        assert picture.width > 800
    before = (folder / "results.svg").read_bytes()
    write_results(folder)
    assert (folder / "results.svg").read_bytes() == before


def test_the_figure_is_not_stretched_by_one_value_without_an_interval() -> None:
    """It is an arrow with its number at the side where it lies; the axis fits the intervals."""
    axes = Figure().subplots()
    fine = Estimate(0.8, error=0.01, df=4, low=0.78, high=0.82, p=None, seeds=5)
    soup = Estimate(0.1, error=None, df=None, low=None, high=None, p=None, seeds=1)
    fit_axis(axes, [fine, None, soup])
    low, high = axes.get_xlim()
    assert 75 < low < 78 and 82 < high < 85
    (arrow,) = axes.texts
    assert arrow.get_text() == "10.0" and arrow.xy == (0, 2)


def test_without_differences_it_says_so(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "methods=finetune,adafilter", "seeds=0..2", "tune=0")
    for name in ("finetune", "adafilter"):
        contender(tmp_path, plan, name, 1.0)
    write_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert text.splitlines()[2].startswith("AdaFilter does not differ from fine-tuning (p < 0.05")
    assert "## Tuning" not in text


def test_a_comparison_half_way_says_what_is_missing(
    whole: tuple[Path, Plan], tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(whole[0], folder)
    plan = whole[1]
    shutil.rmtree(final_run(folder, "adafilter", 3))
    failed = RunFiles(final_run(folder, "adafilter", 2))
    failed.write_status({"state": "failed", "reason": "the loss became nan at step 7"})
    RunFiles(final_run(folder, "linear_probe", 1)).test_outcomes.unlink()
    # On other pictures than the base with the same seed: not to be paired.
    outcomes(0.7, 203, data="d1").write(final_run(folder, "adafilter-frozen", 3))
    shutil.rmtree(trial_run(folder, "finetune", 0))
    results = write_results(folder)
    assert (results.missing, results.planned) == (3, 16)
    row = results.contender("adafilter")
    assert row.accuracy is not None and row.accuracy.seeds == 2 == row.difference.seeds  # type: ignore[union-attr]
    frozen = results.contender("adafilter-frozen")
    assert frozen.accuracy.seeds == 4 and frozen.difference.seeds == 3  # type: ignore[union-attr]
    # Seeds that all have: 0; 1 is missing for one, 2 and 3 for another.
    assert results.rank_seeds == (0,)
    text = (folder / "results.md").read_text()
    assert text.splitlines()[2].startswith("So far, with 3 of 16 runs missing: ")
    missing = text.partition("## Missing")[2]
    assert "- AdaFilter: seed 3: not begun" in missing
    assert "- AdaFilter: seed 2: failed: the loss became nan at step 7" in missing
    assert "- linear probe: seed 1: " in missing and "adafilter evaluate" in missing
    assert "frozen random gate: seed 3: on other data than finetune, not compared" in missing
    assert "- fine-tuning: trial 0: not begun" in missing
    assert plan.contender("finetune").title == "fine-tuning"


def test_before_anything_is_finished(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "methods=finetune,adafilter", "seeds=0..2", "tune=2")
    results = write_results(tmp_path)
    assert results.missing == results.planned == 6
    assert "no run of fine-tuning is finished" in (tmp_path / "results.md").read_text()
    # One seed of each: a difference without an interval, and no claim.
    for name in ("finetune", "adafilter"):
        contender(tmp_path, plan, name, 1.0)
        for seed in (1, 2):
            shutil.rmtree(final_run(tmp_path, name, seed))
    results = write_results(tmp_path)
    assert results.contender("adafilter").p is None
    text = (tmp_path / "results.md").read_text()
    assert "nothing can be said of differences to fine-tuning" in text and "(one seed)" in text
    with pytest.raises(UserError, match="not the folder of a comparison"):
        write_results(tmp_path / "elsewhere")


def test_test_pictures_of_each_seed_are_not_taken_for_the_same(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "methods=finetune,adafilter", "seeds=0..2", "tune=0")
    for number, name in enumerate(("finetune", "adafilter")):
        contender(tmp_path, plan, name, 1.0 + number)
        for seed in plan.seeds:
            own = outcomes(1.0 + number, seed, data=f"d{seed}", pictures=f"t{seed}")
            own.write(final_run(tmp_path, name, seed))
    results = write_results(tmp_path)
    assert not results.same_pictures
    difference = results.contender("adafilter").difference
    assert difference is not None and difference.df == 2
    assert "others for each seed" in (tmp_path / "results.md").read_text()
