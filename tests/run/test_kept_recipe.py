"""A recipe.yaml that somebody edited in a run folder is noticed, whatever uses the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.errors import UserError
from adafilter_dist.launch.target import job_of
from adafilter_dist.metrics import cut_after
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.run import kept_recipe
from adafilter_dist.run.kept_recipe import keep, read_kept, recipe_file, seal
from adafilter_dist.system.sealed_files import write_manifest
from adafilter_dist.training.plan import make_plan


def demo(*words: str) -> Recipe:
    return load_recipe(["recipe=demo", *words])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    keep(folder, demo("optim.lr=0.005"))
    return folder


def edit(run: Path, old: str, new: str) -> None:
    path = run / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "{run}"],
        ["resume", "{run}", "checkpoint.every=5"],
        ["train", "recipe=demo", "optim.lr=0.005", "run_dir={run}"],
        ["train", "recipe=demo", "optim.lr=0.5", "resume={run}"],
        ["submit", "resume={run}", "launch.cluster=local"],
        ["evaluate", "{run}"],
        ["evaluate", "recipe=demo", "run_dir={run}"],
        ["compact", "{run}"],
    ],
    ids=" ".join,
)
def test_an_edited_recipe_is_one_line_that_names_what_was_and_what_is(
    run: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, "lr: 0.005", "lr: 0.5")
    before = sorted(path.name for path in run.iterdir())
    assert main([word.format(run=run) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.yaml was edited" in line and "(optim.lr: 0.005 -> 0.5)" in line
    assert line.endswith(f"adafilter resume {run} optim.lr=0.5 --allow-mismatch optim.lr")
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_way_on_that_the_line_names_is_one(run: Path) -> None:
    edit(run, "lr: 0.005", "lr: 0.5")
    asked = load_recipe([f"recipe={run / 'recipe.yaml'}", "optim.lr=0.5", f"resume={run}"])
    for allow in ("optim.lr", "optim"):
        plan = make_plan(asked, [allow])
        assert plan.decision.changes["optim.lr"] == (0.005, 0.5)
    with pytest.raises(UserError, match=r"was edited"):
        make_plan(asked, ["train"])
    edit(run, "lr: 0.5", "lr: 0.005")  # put back
    assert read_kept(run).optim.lr == 0.005


def test_what_does_not_change_the_numbers_may_be_edited(run: Path) -> None:
    edit(run, "keep: 2", "keep: 5")
    assert read_kept(run).checkpoint.keep == 5


def test_a_key_that_was_taken_out_is_noticed(run: Path) -> None:
    edit(run, "  momentum: 0.9\n", "")
    read_kept(run)  # its default is what stood there
    edit(run, "  lr: 0.005\n", "")
    with pytest.raises(UserError, match=r"optim\.lr: 0\.005 -> 0\.0"):
        read_kept(run)


def test_a_change_by_a_command_can_be_interrupted_anywhere(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kept_recipe, "write_text", killed)
        keep(run, demo("optim.lr=0.25"))
    assert read_kept(run).optim.lr == 0.005
    real = kept_recipe._seal
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            kept_recipe,
            "_seal",
            lambda run, recipes: killed(run, "") if len(recipes) == 1 else real(run, recipes),
        )
        keep(run, demo("optim.lr=0.25"))
    assert read_kept(run).optim.lr == 0.25
    seal(run)  # as the next attempt does: what was before counts no more
    edit(run, "lr: 0.25", "lr: 0.005")
    with pytest.raises(UserError, match=r"optim\.lr: 0\.25 -> 0\.005"):
        read_kept(run)


def test_a_recipe_that_is_gone_is_written_again(run: Path) -> None:
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").unlink()
    assert recipe_file(run).read_text() == text


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff", b'{"recipes": [{}]}'])
def test_without_its_copy_the_hash_in_the_checkpoints_tells(
    run: Path, content: bytes | None
) -> None:
    """As in runs of an earlier version, or where it is damaged."""
    if content is None:
        (run / "recipe.json").unlink()
    else:
        (run / "recipe.json").write_bytes(content)
    known = demo("optim.lr=0.005")
    for step, digest in ((10, "0" * 8), (20, run_hash(known))):
        folder = run / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        write_manifest(folder / "manifest.json", {"run_hash": digest})
    assert read_kept(run) == known
    edit(run, "lr: 0.005", "lr: 0.5")
    with pytest.raises(UserError, match=f"step-000000020 .* {run_hash(known)}, this recipe's is"):
        read_kept(run)
    assert read_kept(run, ["optim"]).optim.lr == 0.5
    edit(run, "lr: 0.5", "lr: 0.005")
    seal(run)
    edit(run, "lr: 0.005", "lr: 0.5")
    with pytest.raises(UserError, match=r"optim\.lr: 0\.005 -> 0\.5"):
        read_kept(run)


LONG = "a" * 400


@pytest.mark.parametrize(
    "words",
    [
        ["resume", LONG],
        ["evaluate", LONG],
        ["compact", LONG],
        ["rm", LONG],
        ["status", LONG],
        ["logs", LONG],
        ["train", "recipe=demo", f"resume={LONG}"],
        ["train", "recipe=demo", f"run_dir={LONG}"],
        ["train", "recipe=demo", f"name={LONG}"],
        ["submit", f"resume={LONG}"],
    ],
    ids=lambda words: " ".join(words)[:20],
)
def test_a_name_of_400_letters_is_one_line(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"step": "9", "state": 3}', '{"step": [1], "epoch": {}}', "[" * 100_000],
    ids=["empty", "list", "null", "text", "nested", "deep"],
)
def test_damaged_files_of_a_run_are_read_leniently(run: Path, content: str) -> None:
    for name in ("status.json", "metrics.jsonl", "events.jsonl", "submitted.json"):
        (run / name).write_text(content + "\n")
    plan = make_plan(load_recipe([f"recipe={run / 'recipe.yaml'}", f"resume={run}"]), [])
    assert (plan.last_step, plan.done) == (0, False)
    assert job_of(run) is None
    cut_after(run / "metrics.jsonl", 5, 1)
    cut_after(run / "metrics.jsonl", 5, 1, ending=True)
