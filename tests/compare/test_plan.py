"""The plan of a comparison: equal designs, what is refused, what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.compare.contenders import CONTENDERS
from adafilter_dist.compare.design import DIMENSIONS, sobol_points
from adafilter_dist.compare.plan import FILE, Plan, final_run, trial_run
from adafilter_dist.compare.request import read_request
from adafilter_dist.compare.space import Dimension
from adafilter_dist.errors import UserError

WORDS = ("recipe=control/mixed-domains", "methods=finetune,adafilter", "seeds=0..2", "tune=4")


def plan_of(*words: str) -> Plan:
    return read_request([*WORDS, *words]).plan


@pytest.mark.parametrize("trials", [1, 2, 8, 32])
def test_each_part_of_every_range_has_its_trial(trials: int) -> None:
    points = sobol_points(trials)
    assert len(points) == trials
    for axis in zip(*points, strict=True):
        assert sorted(int(share * trials) for share in axis) == list(range(trials))


def test_fewer_trials_are_the_first_ones() -> None:
    assert sobol_points(5) == sobol_points(8)[:5]


def test_bounds_are_the_ends_of_the_range() -> None:
    rate = Dimension("optim.lr", 1e-3, 0.1)
    assert [rate.at(share) for share in (0.0, 0.5, 1.0)] == [0.001, 0.01, 0.1]
    assert Dimension("method.gate.probability", 0.1, 0.5, "linear").at(0.5) == 0.3


def test_every_contender_is_a_recipe_whose_trials_have_its_keys() -> None:
    """At both ends of every range the recipe is one, and another one."""
    names = ",".join(CONTENDERS)
    plan = read_request(["recipe=food101", f"methods={names}", "seeds=0"]).plan
    assert [each.name for each in plan.contenders] == list(CONTENDERS)
    for each in plan.contenders:
        assert 1 <= len(each.space) <= DIMENSIONS
        ends = [each.with_settings(each.settings((end,) * DIMENSIONS)) for end in (0.0, 1.0)]
        assert ends[0] != ends[1]
        assert {one.key for one in each.space} >= {"optim.lr"}


def test_all_contenders_are_tried_at_the_same_points() -> None:
    plan = plan_of()
    first, second = ([each.settings(p) for p in plan.design] for each in plan.contenders)
    assert first == second and len(first) == 4


def test_rates_of_head_and_gate_keep_their_ratio() -> None:
    adafilter = plan_of().contender("adafilter")
    recipe = adafilter.with_settings({"optim.lr": 0.003})
    assert (recipe.optim.lr, recipe.optim.lr_head, recipe.optim.lr_gate) == (0.003, 0.005, 0.01)


def test_a_key_that_the_command_fixes_is_searched_by_nobody() -> None:
    plan = plan_of("optim.weight_decay=0")
    for each in plan.contenders:
        assert list(each.settings(plan.design[0])) == ["optim.lr"]
        assert each.recipe.optim.weight_decay == 0


def test_a_key_of_some_methods_is_for_these() -> None:
    plan = plan_of("method.gate.bias=2", "methods=finetune,adafilter,adafilter-bias1")
    biases = [
        each.recipe.model_dump()["method"].get("gate", {}).get("bias") for each in plan.contenders
    ]
    assert biases == [None, 2.0, 1.0]


def test_the_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of("base=adafilter")
    plan.write(tmp_path)
    kept = Plan.read(tmp_path)
    assert kept == plan and kept.hash == plan.hash
    kept.require_same(plan, tmp_path)


def test_a_plan_that_was_edited_is_refused(tmp_path: Path) -> None:
    plan_of().write(tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"tune": 4', '"tune": 8'))
    with pytest.raises(UserError, match="edited by hand"):
        Plan.read(tmp_path)


def test_averages_are_no_contenders() -> None:
    plan = plan_of("methods=finetune,finetune+wise_ft,adafilter,finetune+soup")
    assert [each.name for each in plan.contenders] == ["finetune", "adafilter"]
    assert plan.averages == ("finetune+wise_ft", "finetune+soup")
    assert plan.hash == plan_of().hash  # nothing else is trained


def test_order_base_and_site_make_no_other_comparison() -> None:
    same = plan_of("methods=adafilter,finetune", "base=adafilter", "launch.partition=gpu")
    assert same.hash == plan_of().hash


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seeds=0..3", "seeds: 0,1,2 -> 0,1,2,3"),
        ("tune=8", "tune: 4 -> 8"),
        ("methods=finetune", "methods: adafilter,finetune -> finetune"),
        ("optim.momentum=0.5", "adafilter optim.momentum: 0.9 -> 0.5"),
        ("optim.lr=0.1", "adafilter optim.lr: 0.03 -> 0.1"),
    ],
)
def test_another_plan_in_the_same_folder_says_what_differs(word: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        plan_of(word).require_same(plan_of(), Path("here"))
    assert line in str(error.value) and "compare_dir=PATH" in str(error.value)
    assert "\n" not in str(error.value)
    assert plan_of(word).hash != plan_of().hash


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["methods=fintune"], "methods=fintune: not known (did you mean 'finetune'?)"),
        (["methods=finetune,finetune"], "stands there twice"),
        (["methods="], "which methods?"),
        (["seeds=0..x"], "must be like 0..4 or 0,1,2"),
        (["seeds=3..1"], "ends before it begins"),
        (["seeds=1,1"], "1 stands there twice"),
        (["tune=-1"], "must be a whole number from 0 to 1024"),
        (["tune_seed=1"], "tune_seed=1: is one of seeds="),
        (["methods=finetune,finetune+soop"], "no average of this kind (did you mean 'soup'?)"),
        (["methods=finetune,l2sp+soup"], "methods=l2sp+soup: l2sp must be one of methods=, too"),
        (["base=l2sp"], "base=l2sp: none of methods=finetune,adafilter"),
        (["seed=3"], "the seeds are those of seeds=0..4"),
        (["run_dir=x"], "compare_dir=PATH"),
        (["method=finetune"], "the methods are those of methods="),
        (["evaluate.test=false"], "once"),
        (["method.gate.bais=1"], "(did you mean 'method.gate.bias'?)"),
        (["sedes=0..4"], "did you mean 'seeds'?"),
        (["optim.lr=0.1,0.2"], "a comma list is a sweep"),
        (["optim.lr=x"], "optim.lr=x:"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str) -> None:
    given = {word.partition("=")[0] for word in words}
    others = [word for word in WORDS if word.partition("=")[0] not in given]
    with pytest.raises(UserError) as error:
        read_request([*others, *words])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folders_of_its_runs() -> None:
    folder = Path("runs/x/compare-1")
    assert trial_run(folder, "finetune", 3) == folder / "trials" / "finetune" / "3"
    assert final_run(folder, "finetune", 0) == folder / "runs" / "finetune" / "seed-0"
