"""WiSE-FT and soups of real run folders become contenders of the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adafilter_dist.__main__ import main
from adafilter_dist.compare.averaged_runs import average_runs
from adafilter_dist.compare.collected import AVERAGES, REFERENCE
from adafilter_dist.compare.plan import Plan, final_run, trial_run
from adafilter_dist.compare.request import read_request
from adafilter_dist.compare.results import write_results
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.distributed.world import join_world
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate import Evaluator
from adafilter_dist.methods import build_method
from adafilter_dist.methods.export import export_model, load, read_weights
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.recipe import Recipe
from adafilter_dist.report.outcomes import read_test_outcomes
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.kept_recipe import keep
from adafilter_dist.training.run_data import keep_run_data
from tests.compare.folders import finished
from tests.shared.real_pictures import thumbnails

pytestmark = pytest.mark.slow


def train(run: Path, recipe: Recipe, seed: int, step: float) -> None:
    """Stands in for training: the weights of a run, moved by ``step`` in a random direction."""
    recipe = recipe.model_copy(update={"run_dir": run, "seed": seed})
    prepared = open_prepared(recipe)
    backbone = load_backbone(recipe, prepared.classes)
    trainable = build_method(backbone, recipe)
    torch.manual_seed(seed + int(1000 * step))
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            parameter += step * torch.randn_like(parameter) * parameter.std(correction=0)
    finished(run, 0.5, None)
    preprocess = resolve_preprocess(recipe)
    export_model(run / "best", trainable, classes=prepared.classes, preprocess=preprocess)
    keep(run, recipe)
    keep_run_data(run, prepared)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    root = tmp_path_factory.mktemp("pictures")
    for number, path in enumerate(thumbnails()):
        place = root / ("test" if number % 2 else "train") / path.name.partition("_")[0]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    folder = tmp_path_factory.mktemp("compare")
    recipe_file = folder / "small.yaml"
    recipe_file.write_text(
        "name: small\n"
        f"data: {{name: imagefolder, root: {root}, stored_size: 28, stored_format: raw,\n"
        "       val_fraction: 0.4, num_workers: 1}\n"
        "model: {name: small_resnet}\n"
        "train: {global_batch: 8, micro_batch: 4}\n"
        "engine: {device: cpu, threads: 1}\n"
    )
    assert main(["prepare", f"recipe={recipe_file}", "method=finetune"]) == 0
    averages = [f"finetune+{kind}" for kind in ("wise_ft", "soup", "uniform_soup")]
    methods = ",".join(["finetune", *averages])
    words = [f"recipe={recipe_file}", f"methods={methods}", "seeds=0..1", "tune=3"]
    plan = read_request(words).plan
    plan.write(folder)
    recipe = plan.contender("finetune").recipe
    for seed in plan.seeds:
        run = final_run(folder, "finetune", seed)
        train(run, recipe, seed, 0.3)
        assert main(["evaluate", str(run)]) == 0
    for k in range(plan.tune):
        train(trial_run(folder, "finetune", k), recipe, plan.tune_seed, 0.1 * (k + 1))
    return folder, plan


def test_wise_ft_is_a_contender_of_every_seed(compared: tuple[Path, Plan]) -> None:
    folder, plan = compared
    before = write_results(folder)
    assert "seed 0: not averaged yet" in before.contender("finetune+wise_ft").problems
    said: list[str] = []
    average_runs(folder, plan, "finetune+wise_ft", said.append)
    assert len(said) == 2 and "share" in said[0]
    for seed in plan.seeds:
        place = folder / AVERAGES / "finetune+wise_ft" / f"seed-{seed}"
        note = json.loads((place / "average.json").read_text())
        validation = {float(share): top1 for share, top1 in note["validation"].items()}
        assert note["share"] == max(validation, key=lambda s: (validation[s], s))
        # The network of that share, by hand.
        run = final_run(folder, "finetune", seed)
        recipe = plan.contender("finetune").recipe.model_copy(update={"seed": seed})
        start = build_method(load_backbone(recipe, 2), recipe).model.state_dict()
        tuned, share = read_weights(run / "best"), note["share"]
        model = load(run)[0]
        state = {
            name: value
            if name.startswith("head.") or not value.is_floating_point()
            else (1 - share) * start[name] + share * value
            for name, value in tuned.items()
        }
        model.load_state_dict(state)
        outcomes = read_test_outcomes(place)
        assert outcomes.data == read_test_outcomes(run).data
        assert outcomes.correct.mean() == _accuracy(model, recipe)
    # A second time there is nothing to do.
    said.clear()
    average_runs(folder, plan, "finetune+wise_ft", said.append)
    assert said == []
    results = write_results(folder)
    row = results.contender("finetune+wise_ft")
    assert row.title == "fine-tuning + WiSE-FT" and row.difference is not None
    assert row.difference.seeds == 2 and row.p is not None and row.problems == ()


def _accuracy(model: torch.nn.Module, recipe: Recipe) -> float:
    with join_world(recipe) as world:
        evaluator = Evaluator(recipe, open_prepared(recipe), resolve_preprocess(recipe), world)
        return evaluator.evaluate(model, "test").top1


@pytest.mark.parametrize(("name", "members"), [("soup", 1), ("uniform_soup", 3)])
def test_soups_are_compared_with_the_best_of_their_trials(
    compared: tuple[Path, Plan], name: str, members: int
) -> None:
    folder, plan = compared
    average_runs(folder, plan, f"finetune+{name}")
    place = folder / AVERAGES / f"finetune+{name}" / f"seed-{plan.tune_seed}"
    note = json.loads((place / "average.json").read_text())
    assert len(note["members"]) >= members and len(note["trials"]) == 3
    best = max(note["trials"].values())
    assert note["trials"][note["best_trial"]] == best
    if name == "soup":
        assert note["validation"] >= best
    row = write_results(folder).contender(f"finetune+{name}")
    ours, theirs = (read_test_outcomes(path).correct for path in (place, place / REFERENCE))
    assert row.difference is not None and row.p is None and row.rank is None
    assert row.difference.value == pytest.approx(ours.mean() - theirs.mean())
    assert f"{row.title}: minus the best of its trials." in (folder / "results.md").read_text()


def test_what_is_not_finished_is_not_averaged(compared: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = compared
    shutil.copytree(folder, tmp_path / "other")
    other = tmp_path / "other"
    shutil.rmtree(other / AVERAGES, ignore_errors=True)
    RunFiles(final_run(other, "finetune", 1)).write_status({"state": "stopped"})
    RunFiles(trial_run(other, "finetune", 1)).write_status({"state": "running"})
    with pytest.raises(UserError, match="seed-1: not finished"):
        average_runs(other, plan, "finetune+wise_ft")
    with pytest.raises(UserError, match="not over, and a soup is made from all trials"):
        average_runs(other, plan, "finetune+soup")
    with pytest.raises(UserError, match=r"no average of this kind \(did you mean 'soup'\?\)"):
        average_runs(other, plan, "finetune+soop")
    assert [path.name for path in (other / AVERAGES / "finetune+wise_ft").iterdir()] == ["seed-0"]
