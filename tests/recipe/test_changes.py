"""What may change when a run is resumed, and how it says no."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.commands import resume as resume_command
from adafilter_dist.commands import train as train_command
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.changes import (
    RecipeDecision,
    begin,
    check_changes,
    require_end,
    require_known,
    translate_step,
)
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.training.lr_schedule import lr_factor

HASHES = {
    "caltech256": "66f75eaf",
    "caltech256-30": "e06f8b47",
    "caltech256-60": "e010583e",
    "demo": "86c3b5db",
    "food101": "4248e9cc",
    "food101-sparse": "f3b9ff33",
}
# As they were when decisions on pictures had no contrast to reach.
WITHOUT_CONTRAST_HASHES = {
    "caltech256": "820944b2",
    "caltech256-30": "90aaf4df",
    "caltech256-60": "e68317fe",
    "demo": "05660c4e",
    "food101": "0c3ca4c2",
    "food101-sparse": "07e48991",
}
# As they were before gates decided on pictures: the paper's form still is the same run, in `demo`
# with the regulariser that it had then.
REGULARISER = ("method.sparsity.kind=decide", "method.sparsity.weight=2.5")
PAPER_HASHES = {
    "caltech256": "efe59195",
    "caltech256-30": "594c176b",
    "caltech256-60": "f91bfde9",
    "demo": "ebbeb830",
    "food101": "c09fa3ca",
    "food101-sparse": "77431d45",
}


def demo(*words: str) -> Recipe:
    return load_recipe(["recipe=demo", *words])


def on(old: Recipe, tmp_path: Path, *words: str, allow: tuple[str, ...] = ()) -> RecipeDecision:
    """As ``adafilter resume RUN WORDS``: the run's own recipe with words put over it."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(old))
    return check_changes(old, load_recipe([f"recipe={file}", *words]), allow)


def refused(old: Recipe, new: Recipe, *allow: str, run: str = "runs/demo/1") -> list[str]:
    with pytest.raises(UserError) as caught:
        check_changes(old, new, allow, run=run)
    return str(caught.value).splitlines()


def rates(recipe: Recipe, per_epoch: int = 10) -> list[float]:
    total = recipe.train.epochs * per_epoch
    return [lr_factor(recipe.optim, step, per_epoch, total) for step in range(total)]


@pytest.mark.parametrize("name", HASHES)
def test_hashes_of_the_shipped_recipes_stay(name: str) -> None:
    assert run_hash(load_recipe([f"recipe={name}"])) == HASHES[name]
    before = load_recipe([f"recipe={name}", "method.gate.contrast=0"])
    assert run_hash(before) == WITHOUT_CONTRAST_HASHES[name]
    then = (*REGULARISER, "method.gate.temperature=0.2") if name == "demo" else ()
    paper = load_recipe([f"recipe={name}", "method.gate.recipe=paper", *then])
    assert run_hash(paper) == PAPER_HASHES[name]


def test_identity_knows_the_length_of_the_schedule_but_not_how_it_came_about() -> None:
    assert run_hash(demo("optim.schedule_on_extend=hold")) == run_hash(demo())
    assert run_hash(demo("optim.schedule_epochs=8")) != run_hash(demo())


def test_the_same_words_change_nothing() -> None:
    verdict = check_changes(demo(), demo())
    assert (verdict.recipe, verdict.changed, verdict.notices) == (demo(), False, ())


@pytest.mark.parametrize(
    "word",
    [
        *("checkpoint.every=5", "checkpoint.keep=9", "log.every=1", "log.to=[]"),
        *("evaluate.probe=false", "evaluate.gates=false", "engine.device=cpu", "engine.threads=1"),
        *("data.num_workers=3", "data.loader=torchvision", "data.root=/a", "data.prepared=/b"),
        *("data.download=false", "train.evaluate_every=2", "name=other"),
        "train.micro_batches_per_forward=4",
    ],
)
def test_free_keys_are_taken_over_with_one_notice(word: str) -> None:
    new = demo(word)
    verdict = check_changes(demo(), new)
    assert verdict.recipe == new and verdict.changed
    (notice,) = verdict.notices
    assert notice.startswith(word.partition("=")[0] + ": ") and " -> " in notice
    assert list(verdict.changes) == [word.partition("=")[0]]


def test_how_the_attempt_was_asked_for_is_not_kept() -> None:
    old = demo("run_dir=here")
    verdict = check_changes(old, demo("run_dir=there", "resume=there"))
    assert verdict.recipe == old and not verdict.changed and not verdict.notices


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("data.classes=[0,1]", 'data.classes: null -> ["0", "1"]'),
        ("data.on_bad=skip", "data.on_bad: error -> skip"),
        ("augment.flip=0", "augment.flip: 0.5 -> 0.0"),
        ("model.dropout=true", "model.dropout: false -> true"),
        ("method.gate.hidden=8", "method.gate.hidden: 64 -> 8"),
        ("optim.lr=0.1", "optim.lr: 0.04 -> 0.1"),
        ("ema.decay=0.9", "ema.decay: 0.0 -> 0.9"),
        ("train.global_batch=32", "train.global_batch: 64 -> 32"),
        ("train.micro_batch=16", "train.micro_batch: 32 -> 16"),
        ("train.precision=bf16", "train.precision: fp32 -> bf16"),
    ],
)
def test_numbers_are_refused_unless_allowed(word: str, line: str) -> None:
    key = word.partition("=")[0]
    word = word.replace("[0,1]", "['0','1']")
    head, said, advice = refused(demo(), demo(word))
    assert head.startswith("runs/demo/1 holds a run of another recipe")
    assert said == line
    assert "resume=never" in advice and "run_dir=" in advice
    assert advice.endswith(f"for those who know: --allow-mismatch {key}")

    for allow in (key, key.partition(".")[0]):
        verdict = check_changes(demo(), demo(word), [allow])
        assert verdict.recipe == demo(word)
        (notice,) = verdict.notices
        assert notice.startswith(f"{line} (allowed by --allow-mismatch)")


def test_all_refusals_at_once_and_only_what_is_not_allowed() -> None:
    new = demo("seed=1", "optim.lr=0.1", "optim.momentum=0.5", "log.every=1", "train.epochs=12")
    lines = refused(demo(), new, "optim", "checkpoint")
    assert [line.partition(":")[0] for line in lines[1:-1]] == ["train.epochs", "seed"]
    assert lines[-1].endswith("--allow-mismatch train.epochs --allow-mismatch seed")


def test_another_method_is_one_line_not_one_for_each_of_its_keys() -> None:
    lines = refused(demo(), demo("method=finetune"))
    assert lines[1:-1] == ["method.name: adafilter -> finetune"]
    assert (
        check_changes(demo(), demo("method=finetune"), ["method"]).recipe.method.name == "finetune"
    )


def test_a_moved_image_folder_is_another_until_allowed() -> None:
    def pictures(root: str) -> Recipe:
        return load_recipe(["recipe=imagefolder", f"data.root={root}"])

    assert "data.root: /a -> /b" in refused(pictures("/a"), pictures("/b"))
    assert check_changes(pictures("/a"), pictures("/b"), ["data.root"]).recipe == pictures("/b")


def test_allowing_what_there_is_not_names_the_nearest() -> None:
    lines = refused(demo(), demo(), "train.globalbatch", "lr", "optim")
    assert len(lines) == 2
    assert "--allow-mismatch train.globalbatch: no such key" in lines[0]
    assert "did you mean 'train.global_batch'?" in lines[0]
    assert "did you mean 'optim.lr'?" in lines[1]
    require_known(["method.gate.hidden", "method.gate", "seed", "data", "optim.schedule_epochs"])


@pytest.mark.parametrize("command", [train_command, resume_command])
def test_the_commands_refuse_it_before_anything_starts(command: Any, tmp_path: Path) -> None:
    first = "recipe=demo" if command is train_command else str(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'optim\.lr'"):
        command.run([first, "--allow-mismatch", "optim.lrr", "optim.lr=1"])


@pytest.mark.parametrize("schedule", [["constant"], ["step", "optim.step_epochs=[5]"]])
def test_without_a_length_of_the_schedule_epochs_are_free(schedule: list[str]) -> None:
    words = [f"optim.schedule={schedule[0]}", *schedule[1:]]
    old, more = demo(*words), demo(*words, "train.epochs=15")
    verdict = check_changes(old, more)
    assert verdict.recipe == more
    assert verdict.notices == ("train.epochs: 10 -> 15",)
    assert rates(more)[:100] == rates(old)
    (notice,) = check_changes(more, old, run="runs/demo/1").notices
    assert notice.startswith("train.epochs: 15 -> 10; ")
    assert "adafilter resume runs/demo/1 train.epochs=15" in notice


def test_more_epochs_under_cosine_need_a_word() -> None:
    _, line, advice = refused(demo(), demo("train.epochs=15"))
    assert line.startswith("train.epochs: 10 -> 15; add optim.schedule_on_extend=stretch")
    assert "optim.schedule_on_extend=hold" in line and "its 10 epochs" in line
    assert advice.endswith("--allow-mismatch train.epochs")
    allowed = check_changes(demo(), demo("train.epochs=15"), ["train.epochs"])
    assert allowed.recipe == demo("train.epochs=15")
    assert "allowed by --allow-mismatch" in allowed.notices[0] and "jumps" in allowed.notices[0]


def test_stretch_is_the_schedule_of_a_run_of_that_length(tmp_path: Path) -> None:
    verdict = on(demo(), tmp_path, "train.epochs=15", "optim.schedule_on_extend=stretch")
    assert verdict.recipe == demo("train.epochs=15")
    (notice,) = verdict.notices
    assert notice.startswith("train.epochs: 10 -> 15; the schedule is now 15 epochs long")
    assert "jumps" in notice
    assert verdict.changes == {"train.epochs": (10, 15)}


def test_hold_keeps_the_schedule_and_then_its_last_rate(tmp_path: Path) -> None:
    verdict = on(demo(), tmp_path, "train.epochs=15", "optim.schedule_on_extend=hold")
    assert verdict.recipe == demo("train.epochs=15", "optim.schedule_epochs=10")
    assert rates(verdict.recipe) == [*rates(demo()), *[rates(demo())[-1]] * 50]
    assert verdict.notices == (
        "train.epochs: 10 -> 15; the schedule is 10 epochs long, and its last rate is held "
        "afterwards",
    )
    assert verdict.changes == {"train.epochs": (10, 15), "optim.schedule_epochs": (None, 10)}


def test_extended_again_and_again(tmp_path: Path) -> None:
    def extend(old: Recipe, epochs: int, how: str) -> Recipe:
        words = [f"train.epochs={epochs}", f"optim.schedule_on_extend={how}"]
        kept = on(old, tmp_path, *words).recipe
        # The same words once more, as a requeued job gives them, go on without a word.
        assert not on(kept, tmp_path, *words).changed
        assert kept.optim.schedule_on_extend is None
        return kept

    held = extend(demo(), 15, "hold")
    twice = extend(held, 20, "hold")
    assert (twice.train.epochs, twice.optim.schedule_epochs) == (20, 10)
    stretched = extend(twice, 25, "stretch")
    assert (stretched.train.epochs, stretched.optim.schedule_epochs) == (25, None)
    again = extend(stretched, 30, "hold")
    assert (again.train.epochs, again.optim.schedule_epochs) == (30, 25)


def test_a_schedule_with_a_length_of_its_own_is_not_moved_by_more_epochs(tmp_path: Path) -> None:
    held = demo("train.epochs=15", "optim.schedule_epochs=10")
    verdict = on(held, tmp_path, "train.epochs=20")
    assert verdict.recipe == demo("train.epochs=20", "optim.schedule_epochs=10")
    # hold, spelled out
    assert check_changes(demo(), held).recipe == held


def test_train_words_that_extended_a_run_go_on_with_it() -> None:
    words = demo("train.epochs=15", "optim.schedule_on_extend=hold")
    kept = check_changes(demo(), words).recipe
    again = check_changes(kept, words)
    assert again.recipe == kept and not again.changed


def test_hold_under_step_leaves_out_the_drops_past_its_end() -> None:
    words = ["optim.schedule=step", "optim.step_epochs=[5,12]"]
    old = demo(*words)
    held = check_changes(
        old, demo(*words, "train.epochs=15", "optim.schedule_on_extend=hold")
    ).recipe
    assert held.optim.schedule_epochs == 10
    assert rates(held)[-1] == rates(old)[-1]
    assert rates(demo(*words, "train.epochs=15"))[-1] < rates(old)[-1]


def test_fewer_epochs_under_cosine_are_refused() -> None:
    _, line, _ = refused(demo(), demo("train.epochs=8"), run="runs/demo/1")
    assert line.startswith("train.epochs: 10 -> 8")
    assert "`adafilter resume runs/demo/1` goes on with 10" in line
    assert check_changes(demo(), demo("train.epochs=8"), ["train"]).recipe == demo("train.epochs=8")


@pytest.mark.parametrize("how", ["stretch", "hold"])
def test_the_first_words_on_an_extended_run_name_the_longer_one(how: str) -> None:
    more = demo("train.epochs=15", f"optim.schedule_on_extend={how}")
    extended = check_changes(demo(), more).recipe
    lines = refused(extended, demo(), run="runs/demo/1")
    assert len(lines) == 3
    assert lines[1].startswith("train.epochs: 15 -> 10")
    assert "`adafilter resume runs/demo/1` goes on with 15" in lines[1]


def test_another_length_of_the_schedule_is_refused() -> None:
    held = demo("train.epochs=15", "optim.schedule_epochs=10")
    for new, value in ((demo("train.epochs=15"), "null"), (demo("optim.schedule_epochs=12"), "12")):
        lines = refused(held, new)
        assert any(line.startswith(f"optim.schedule_epochs: 10 -> {value}") for line in lines)
    plain = demo("train.epochs=20", "optim.schedule_epochs=18")
    for on_extend in ("stretch", "hold", "null"):
        words = [f"optim.schedule_on_extend={on_extend}", "optim.schedule_epochs=18"]
        both = demo("train.epochs=20", *words)
        lines = refused(held, both)
        assert len(lines) == 3 and lines[1].startswith("optim.schedule_epochs: 10 -> 18")
        assert check_changes(held, both, ["optim.schedule_epochs"]).recipe == plain


def test_another_kind_of_schedule_is_one_line() -> None:
    old = demo("optim.schedule=constant")
    assert [line[:24] for line in refused(old, demo())[1:-1]] == ["optim.schedule: constant"]
    assert check_changes(old, demo(), ["optim.schedule"]).recipe == demo()
    longer = demo("optim.schedule=constant", "train.epochs=15")
    assert check_changes(demo(), longer, ["optim.schedule"]).recipe == longer


def test_what_is_kept_can_be_read_back(tmp_path: Path) -> None:
    held = demo("train.epochs=15", "optim.schedule_epochs=10")
    with pytest.raises(UserError, match="leaves nothing"):
        words = demo("train.epochs=20", "optim.warmup_epochs=12", "optim.schedule_on_extend=hold")
        check_changes(held, words, ["optim.warmup_epochs"])
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(held))
    assert load_recipe([f"recipe={file}"]) == held


def test_a_new_run_has_nothing_to_extend() -> None:
    verdict = begin(demo("optim.schedule_on_extend=hold"))
    assert verdict.recipe == demo()
    assert "means nothing to a new run" in verdict.notices[0]
    assert begin(demo()) == RecipeDecision(demo(), {}, ())


def test_an_end_before_what_was_trained_is_refused() -> None:
    old, new = (demo("optim.schedule=constant", f"train.epochs={n}") for n in (15, 10))
    require_end(old, new, 310, 31)
    with pytest.raises(UserError) as caught:
        require_end(old, new, 311, 31, run="runs/demo/1")
    said = str(caught.value)
    assert said.startswith("train.epochs: 15 -> 10 ends before the 10.03 epochs")
    assert "`adafilter resume runs/demo/1` goes on with 15" in said


def test_a_place_in_batches_of_another_size() -> None:
    assert translate_step(0, 31, 64, 62, 32) == 0
    assert translate_step(31, 31, 64, 62, 32) == 62
    assert translate_step(33, 31, 64, 62, 32) == 66
    assert translate_step(33, 31, 64, 15, 128) == 16
    assert translate_step(34, 31, 64, 15, 128) == 16  # 192 samples seen: 64 of them again
    assert translate_step(30, 31, 64, 15, 128) == 14  # the new epoch's last batch, never the next


def test_no_place_skips_samples() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        samples = draw.randint(2, 500)
        old, new = draw.randint(1, samples), draw.randint(1, samples)
        old_steps, new_steps = samples // old, samples // new
        epoch, batches = draw.randint(0, 5), draw.randrange(old_steps)
        found = translate_step(epoch * old_steps + batches, old_steps, old, new_steps, new)
        there, first = divmod(found, new_steps)
        assert there == epoch
        assert first * new <= batches * old
        # One batch further would leave something out, or the epoch.
        assert (first + 1) * new > batches * old or first + 1 == new_steps
        if old == new:
            assert first == batches
