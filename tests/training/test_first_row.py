"""The first figures of an attempt tell of its steps, and not of how long it took to start."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adafilter_dist.__main__ import main
from adafilter_dist.metrics import read_lines
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.run.files import RunFiles
from adafilter_dist.training import loop, step
from adafilter_dist.training.attempt import run_attempt
from adafilter_dist.training.session import Session
from adafilter_dist.training.stop_policy import StopPolicy
from tests.data import trees

BATCH, STARTING = 6, 100.0


class Clock:
    """Takes the place of `time`: the first batch takes 100 s, all others and each forward 1 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        epoch, inputs = Session.epoch, step.TrainingStep._inputs

        @contextmanager
        def slow(session: Session, *where: Any) -> Iterator[Iterator[Any]]:
            def waiting(batches: Iterator[Any]) -> Iterator[Any]:
                for batch in batches:
                    self.now += STARTING if self.now == 0 else 1
                    yield batch

            with epoch(session, *where) as batches:
                yield waiting(batches)

        def computing(*values: Any) -> Any:
            self.now += 1
            return inputs(*values)

        monkeypatch.setattr(Session, "epoch", slow)
        monkeypatch.setattr(step.TrainingStep, "_inputs", computing)
        for module in (loop, step):
            monkeypatch.setattr(module, "time", self)


def prepared(folder: Path, *more: str) -> Recipe:
    """A short run of small pictures, prepared; ``more`` are words of its recipe."""
    counts = {"train": BATCH, "val": 1, "test": 1}
    root = trees.folders(
        folder / "pictures", {f"{s}/{c}": n for s, n in counts.items() for c in ("owl", "wren")}
    )
    words = [
        *("recipe=imagefolder", f"data.root={root}", "data.stored_size=32", "data.resolution=32"),
        *(
            "data.eval_resize=32",
            "data.num_workers=1",
            "model.name=timm/test_resnet",
            "model.weights=null",
        ),
        *(f"train.global_batch={BATCH}", f"train.micro_batch={BATCH}"),
        *("engine.device=cpu", "engine.threads=1", *more),
    ]
    assert main(["prepare", *words]) == 0
    return load_recipe(words)


def train_rows(recipe: Recipe) -> list[dict[str, Any]]:
    rows = read_lines(RunFiles(run_dir(recipe)).metrics)
    return [row for row in rows if row["kind"] == "train"]


@pytest.mark.slow
def test_starting_the_loader_is_no_wait_of_the_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = prepared(tmp_path, "train.epochs=20", "method=finetune", "log.every=2")
    stop_policy = StopPolicy()
    stop_policy.stop.ask("a test")
    Clock().install(monkeypatch)
    assert run_attempt(recipe, Console(file=io.StringIO()), stop_policy=stop_policy) == 75
    rows = train_rows(recipe)
    assert rows[0]["step"] == 2
    # Two forwards, and the second batch.
    assert rows[0]["data_wait"] == pytest.approx(1 / 3)
    assert rows[0]["images_per_second"] == pytest.approx(2 * BATCH / 3)


@pytest.mark.slow
def test_the_decision_on_pictures_is_no_time_of_the_steps_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of the steps before it are read after it."""
    monkeypatch.chdir(tmp_path)
    recipe = prepared(tmp_path, "train.epochs=3", "log.every=1", "evaluate.test=false")
    clock, decide, decided = Clock(), loop.decide_on_pictures, []
    clock.install(monkeypatch)

    def slow(*values: Any) -> Any:
        clock.now += STARTING
        decided.append(clock.now)
        return decide(*values)

    monkeypatch.setattr(loop, "decide_on_pictures", slow)
    assert run_attempt(recipe, Console(file=io.StringIO())) == 0
    assert decided
    speeds = [row["images_per_second"] for row in train_rows(recipe)]
    assert len(speeds) == 6
    # The first step is a forward, later ones a batch and a forward.
    assert speeds == pytest.approx([BATCH, *[BATCH / 2] * 5])
