"""What tuning chooses, from run folders as runs leave them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from adafilter_dist.compare.plan import Plan, final_run, trial_run
from adafilter_dist.compare.request import read_request
from adafilter_dist.compare.runs import final_recipe, finals_of, standing, trial_recipe, trials_of
from adafilter_dist.compare.tuning import choose, outcome_of
from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.json_files import Row

WORDS = ["recipe=control/mixed-domains", "methods=finetune,adafilter", "seeds=0..1"]


@pytest.fixture
def plan() -> Plan:
    return read_request([*WORDS, "tune=4"]).plan


def leave(
    run: Path, state: str, scores: Sequence[tuple[float, float]] = (), reason: str = ""
) -> None:
    """A run folder with this state and (top-1, loss) of its validations."""
    run.mkdir(parents=True, exist_ok=True)
    RunFiles(run).write_status({"state": state, "reason": reason})
    rows: list[Row] = [
        {"kind": "eval", "split": "val", "step": n, "top1": top1, "loss": loss}
        for n, (top1, loss) in enumerate(scores)
    ]
    RunFiles(run).metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chosen(plan: Plan, folder: Path, trials: Sequence[Sequence[tuple[float, float]]]) -> int | None:
    """The trial that is chosen; one without validations diverged."""
    for k, scores in enumerate(trials):
        state, reason = ("finished", "") if scores else ("failed", "DivergedError: the loss")
        leave(trial_run(folder, "finetune", k), state, scores, reason)
    return choose(plan, folder, "finetune").trial


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        # By accuracy, that of the best epoch; whatever the loss.
        ([[(0.5, 1.0)], [(0.7, 9.0), (0.2, 0.1)], [(0.6, 1.0)], [(0.1, 1.0)]], 1),
        # Then by the loss of that epoch, the first of equal ones.
        ([[(0.5, 1.0)], [(0.7, 0.9)], [(0.7, 0.8)], [(0.7, 0.85), (0.7, 0.1)]], 2),
        # Then by the order of the design.
        ([[(0.5, 1.0)], [(0.7, 0.9)], [(0.7, 0.9)], [(0.5, 0.1)]], 1),
        # What diverged is the worst, of whatever it had before.
        ([[], [(0.0, 9.0)], [], []], 1),
    ],
)
def test_the_best_validation_is_chosen(
    plan: Plan, tmp_path: Path, trials: Sequence[Sequence[tuple[float, float]]], best: int
) -> None:
    assert chosen(plan, tmp_path, trials) == best


def test_a_diverged_trial_is_the_worst_and_counted(plan: Plan, tmp_path: Path) -> None:
    leave(trial_run(tmp_path, "finetune", 3), "failed", [(0.9, 0.1)], "DivergedError: the loss")
    for k in range(3):
        leave(trial_run(tmp_path, "finetune", k), "finished", [(0.1, 2.0)])
    choice = choose(plan, tmp_path, "finetune")
    assert choice.trial == 0 and "1 of 4 trials diverged" in choice.line


def test_nothing_is_chosen_before_all_trials_are_over(plan: Plan, tmp_path: Path) -> None:
    for k in range(3):
        leave(trial_run(tmp_path, "finetune", k), "finished", [(0.1, 2.0)])
    with pytest.raises(UserError, match=r"trial 3 is not over \(not begun\)"):
        choose(plan, tmp_path, "finetune")
    # Out of memory, a full disk: it can still be run.
    leave(trial_run(tmp_path, "finetune", 3), "failed", [(0.9, 0.1)], "UserError: out of memory")
    with pytest.raises(UserError, match=r"trial 3 is not over \(failed: UserError: out of memory"):
        choose(plan, tmp_path, "finetune")


def test_where_all_have_diverged_there_is_nothing_to_choose(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all 4 trials diverged"):
        chosen(plan, tmp_path, [[], [], [], []])


def test_a_choice_stays(plan: Plan, tmp_path: Path) -> None:
    assert chosen(plan, tmp_path, [[(0.1, 1.0)], [(0.7, 1.0)], [(0.6, 1.0)], [(0.1, 1.0)]]) == 1
    first = choose(plan, tmp_path, "finetune")
    for k in range(4):  # the trials are cleared away
        leave(trial_run(tmp_path, "finetune", k), "stopped")
    assert choose(plan, tmp_path, "finetune") == first


def test_without_tuning_the_recipe_is_run_as_it_is(tmp_path: Path) -> None:
    plan = read_request([*WORDS, "tune=0"]).plan
    choice = choose(plan, tmp_path, "finetune")
    recipe = final_recipe(plan, tmp_path, "finetune", 1, choice.settings)
    assert recipe.optim == plan.contender("finetune").recipe.optim and recipe.seed == 1


def test_a_trial_sees_no_test_set_and_no_seed_of_the_runs(plan: Plan, tmp_path: Path) -> None:
    recipe = trial_recipe(plan, tmp_path, "adafilter", 2)
    assert not recipe.evaluate.test and recipe.seed == plan.tune_seed not in plan.seeds
    assert recipe.data.split_seed == plan.tune_seed
    assert recipe.run_dir == trial_run(tmp_path, "adafilter", 2).absolute()
    assert recipe.optim.lr == plan.contender("adafilter").settings(plan.design[2])["optim.lr"]
    final = final_recipe(plan, tmp_path, "adafilter", 1, {"optim.lr": 0.5})
    assert final.evaluate.test and final.seed == final.data.split_seed == 1
    assert final.run_dir == final_run(tmp_path, "adafilter", 1).absolute()


def test_each_seed_draws_where_pictures_are_drawn(tmp_path: Path) -> None:
    words = ["recipe=food101", "methods=finetune", "seeds=3", "tune=2", "data.prepared=/p"]
    drawn = read_request([*words, "data.label_fraction=0.1"]).plan
    assert final_recipe(drawn, tmp_path, "finetune", 3, {}).data.draw == "seed"
    whole = read_request(words).plan
    assert final_recipe(whole, tmp_path, "finetune", 3, {}).data == whole.contenders[0].recipe.data
    fixed = read_request([*words, "data.label_fraction=0.1", "data.split_seed=7"]).plan
    assert final_recipe(fixed, tmp_path, "finetune", 3, {}).data.draw == "split_seed"
    assert drawn.hash != whole.hash


def test_a_final_run_is_done_once_it_is_tested(plan: Plan, tmp_path: Path) -> None:
    final, trial = (
        finals_of(plan, tmp_path, "finetune")[0],
        trials_of(plan, tmp_path, "finetune")[0],
    )
    for run in (final, trial):
        assert standing(run) == "open"
        leave(run.path, "finished", [(0.5, 1.0)])
    assert (standing(final), standing(trial)) == ("open", "finished")
    RunFiles(final.path).figures.mkdir()
    RunFiles(final.path).summary_numbers.write_text("{}")
    assert standing(final) == "finished"
    outcome = outcome_of(plan, trial)
    assert outcome is not None and outcome.accuracy == 0.5
