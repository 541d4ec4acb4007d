"""A run stays with the data it began on: it is never shown or continued for others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.system.sealed_files import write_manifest
from adafilter_dist.training.plan import make_plan
from adafilter_dist.training.run_data import keep_run_data, read_run_data
from tests.shared.real_pictures import thumbnails

ROWS = 34


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working folder, with list.csv of some thumbnails."""
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "list.csv", ROWS)
    return tmp_path


def write_list(path: Path, rows: int) -> None:
    split = ["test" if number % 4 == 0 else "train" for number in range(rows)]
    lines = [
        f"{picture},{picture.name.partition('_')[0]},{split[number]}"
        for number, picture in enumerate(thumbnails()[:rows])
    ]
    path.write_text("\n".join(["path,label,split", *lines]))


def words(place: Path, *more: str) -> list[str]:
    return [
        *("recipe=imagefolder", f"data.csv={place / 'list.csv'}", "data.stored_size=32"),
        *(
            "model.name=timm/test_resnet",
            "model.weights=null",
            "data.resolution=32",
            "data.eval_resize=32",
        ),
        *("train.global_batch=8", "train.micro_batch=4", "data.val_fraction=0.2", *more),
    ]


def noted(recipe: Recipe, state: str) -> Path:
    """The run folder of a recipe that is prepared, as an attempt leaves it."""
    run = run_dir(recipe)
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    (run / "status.json").write_text(json.dumps({"state": state, "step": 3}))
    keep_run_data(run, open_prepared(recipe))
    return run


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_the_same_words_on_changed_data_are_refused(place: Path, state: str) -> None:
    assert main(["prepare", *words(place)]) == 0
    recipe = load_recipe(words(place))
    run = noted(recipe, state)
    plan = make_plan(recipe, ())
    assert plan.done == (state == "finished") and plan.notices == ()

    # The list is edited: its words mean other data, though these are not prepared yet.
    text = (place / "list.csv").read_text()
    (place / "list.csv").write_text(text + "\n")
    with pytest.raises(UserError) as caught:
        make_plan(recipe, ())
    (line,) = str(caught.value).splitlines()
    assert "list.csv: changed since" in line and "adafilter prepare" in line
    assert (f"adafilter resume {run}" in line) == (state == "stopped")
    # Asked for by its folder, the run goes on with the data it has.
    by_folder = recipe.model_copy(update={"resume": str(run)})
    (notice,) = make_plan(by_folder, ()).notices
    assert "list.csv: changed since" in notice and "the data it began on" in notice

    # They are prepared: now nothing of the run is left.
    write_list(place / "list.csv", ROWS - 2)
    assert main(["prepare", *words(place)]) == 0
    for asked in (recipe, by_folder):
        with pytest.raises(UserError) as caught:
            make_plan(asked, ())
        (line,) = str(caught.value).splitlines()
        assert f"{run} is a run on other data than are now in {place}" in line
        assert "resume=never" in line
    fresh = make_plan(recipe.model_copy(update={"resume": "never"}), ())
    assert fresh.path == run.with_name(f"{run.name}-2") and not fresh.done

    # Put back and prepared again, they are its data.
    write_list(place / "list.csv", ROWS)
    assert main(["prepare", *words(place)]) == 0
    assert make_plan(recipe, ()).notices == ()


def test_who_knows_may_go_on_with_other_data_of_as_many_classes(place: Path) -> None:
    assert main(["prepare", *words(place)]) == 0
    recipe = load_recipe(words(place))
    run = noted(recipe, "stopped")
    text = (place / "list.csv").read_text()
    label = thumbnails()[0].name.partition("_")[0]
    (place / "list.csv").write_text(text.replace(f",{label},", ",zebra,"))
    assert main(["prepare", *words(place)]) == 0
    with pytest.raises(UserError, match=f"no class {label} any more, class zebra not known"):
        make_plan(recipe, ())
    with pytest.raises(UserError, match="is a run on other data"):
        make_plan(recipe, ["data.csv"])  # another place, but the same pictures
    (notice,) = make_plan(recipe, ["data"]).notices
    assert "other data from here on (no class" in notice
    (place / "list.csv").write_text(text.replace(f",{label},train", ",zebra,train", 2))
    assert main(["prepare", *words(place)]) == 0
    with pytest.raises(UserError, match="a network for these is another run"):
        make_plan(recipe, ["data"])
    (run / "status.json").write_text(json.dumps({"state": "finished"}))
    with pytest.raises(UserError, match="is a run on other data"):
        make_plan(recipe, ["data"])


def test_data_that_are_gone_cannot_be_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *words(place)]) == 0
    recipe = load_recipe(words(place))
    run = noted(recipe, "finished")
    shutil.rmtree(open_prepared(recipe).folder)
    assert main(["train", *words(place, "engine.device=cpu")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"already finished: {run.relative_to(place) if run.is_absolute() else run}" in said
    assert "any more, and were not compared" in said


def test_runs_of_the_first_release_tell_by_their_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert read_run_data(run) is None
    for step in (1, 2, 3):
        (run / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        path = run / "checkpoints" / f"step-{step:09d}" / "manifest.json"
        write_manifest(path, {"data_fingerprint": f"fingerprint {step}"})
    path.write_bytes(b"torn")
    known = read_run_data(run)
    assert known is not None
    assert (known.fingerprint, known.classes) == ("fingerprint 2", None)
    (run / "best").mkdir()
    (run / "best" / "config.json").write_text(json.dumps({"classes": ["a", "b"]}))
    (run / "data.json").write_text("{")  # torn: as if it were not there
    known = read_run_data(run)
    assert known is not None and known.classes == ["a", "b"]


@pytest.mark.slow
def test_training_notes_its_data_before_it_begins(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = words(
        place,
        *("engine.device=cpu", "engine.threads=1", "train.epochs=1", "evaluate.gates=false"),
        *("run_dir=run", "method=finetune", "optim.warmup_epochs=0"),
    )
    assert main(["prepare", *small]) == 0
    assert main(["train", *small]) == 0
    recipe = load_recipe(small)
    known, now = read_run_data(place / "run"), open_prepared(recipe)
    assert known is not None
    assert (known.fingerprint, known.classes) == (now.fingerprint, now.classes)
    write_list(place / "list.csv", ROWS - 2)
    assert main(["prepare", *small]) == 0
    capsys.readouterr()
    assert main(["train", *small]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run is a run on other data than are now in")
    # Longer, it would go on.
    assert main(["train", *small, "train.epochs=2", "optim.schedule_on_extend=hold"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--allow-mismatch data" in line


def test_training_does_not_begin_on_a_damaged_store(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = words(place, "engine.device=cpu", "engine.threads=1")
    assert main(["prepare", *small]) == 0
    recipe = load_recipe(small)
    path = open_prepared(recipe).train_store
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["train", *small]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} is damaged") and "adafilter prepare" in line
    assert not run_dir(recipe).exists()
    assert main(["prepare", *small]) == 0
    assert "preparing again" in capsys.readouterr().out
    assert bytes(content) != path.read_bytes()
