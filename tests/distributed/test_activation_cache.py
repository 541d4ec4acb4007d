"""Runs with train.cache end with the bits of runs without it: cold, warm, killed, on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adafilter_dist.distributed import join_world
from adafilter_dist.recipe import load_recipe
from adafilter_dist.training.session import Session, build_session
from tests.distributed.conftest import run_folder
from tests.distributed.launch import free_port, rank_environment
from tests.kills.attempts import ForkServer
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
# Eight steps of a network whose last layers alone are trained.
SHORT = ("train.epochs=1", "data.label_fraction=0.3", "model.ungated=freeze")
Attempt = Callable[..., str]


@pytest.fixture
def attempt(server: ForkServer, words: list[str], tmp_path: Path) -> Attempt:
    """Attempt the run of this name, which may get a signal, as in "5:KILL"; what rank 0 printed."""

    def of(name: str, *more: str, ranks: int = 1, signal: str = "", cached: bool = True) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        port = free_port()
        cache = (f"train.cache={tmp_path / 'cache'}",) if cached else ()
        forked = [
            server.fork(
                ["train", *words, *SHORT, *cache, *more],
                folder=folder,
                environment={
                    **(rank_environment(rank, ranks, port) if ranks > 1 else {}),
                    "RECORD": str(folder),
                    "SIGNALS": " ".join(f"{rank}:{signal}" for rank in range(ranks) if signal),
                },
                output=folder / f"printed.{rank}.txt",
                before=["tests.distributed.recorder", "install"],
            )
            for rank in range(ranks)
        ]
        codes = [rank.wait() for rank in forked]
        code = -9 if "KILL" in signal else 75 if signal else 0
        assert codes == [code] * ranks, forked[0].printed()
        return forked[0].printed()

    return of


# Mixup, random erasing, an average of the weights, noise of the gates and its decision are on.
def test_adafilter_cold_killed_warm_and_on_two_ranks(attempt: Attempt, tmp_path: Path) -> None:
    def same(run: str, wanted: str) -> None:
        assert differences(*(run_folder(tmp_path / name) for name in (run, wanted))) == []

    attempt("plain", cached=False)
    # Half of it is computed and kept, and read when the same command goes on.
    attempt("cold", signal="5:KILL")
    assert "train.cache: the outputs of layer3, " in attempt("cold")
    same("cold", "plain")
    attempt("warm", signal="3:TERM")
    assert " batches read and 0 computed; " in attempt("warm")
    same("warm", "plain")

    attempt("plain on two", ranks=2, cached=False)
    assert " batches read and 0 computed by this rank; " in attempt("warm on two", ranks=2)
    same("warm on two", "plain on two")

    # A damaged file is computed again; all others are read.
    damaged = sorted((tmp_path / "cache").glob("*/files/*/*"))[::7]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    printed = attempt("damaged")
    assert printed.count("is damaged (") == len(damaged)
    assert f" and {len(damaged)} computed, {len(damaged)} files damaged; " in printed
    same("damaged", "plain")


def test_methods_share_it_where_the_pictures_are_the_same(attempt: Attempt, tmp_path: Path) -> None:
    unmixed = ("augment.mixup=0", "augment.erasing=0", "train.precision=fp32")
    attempt("gated", *unmixed)
    shared = (*unmixed, "method=finetune", "method.layers=layer4")
    attempt("plain", *shared, cached=False)
    assert " batches read and 0 computed; " in attempt("warm", *shared)
    assert differences(run_folder(tmp_path / "warm"), run_folder(tmp_path / "plain")) == []
    # With every layer trained there is nothing to keep, and the run says so.
    printed = attempt("whole", *unmixed, "model.ungated=train")
    assert "train.cache: nothing is kept or read: no layer comes before conv1.0 (" in printed


def test_weights_of_a_checkpoint_are_not_those_on_disk(words: list[str], tmp_path: Path) -> None:
    """A resumed run goes on with the frozen layers it began with, also after the file changed."""
    recipe = load_recipe([*words, *SHORT, f"train.cache={tmp_path}", "method=finetune"])

    def seen(session: Session) -> list[Tensor]:
        with session.epoch(0) as batches:
            return [next(batches).images for _ in range(2)]

    with join_world(recipe) as world:
        session = build_session(recipe, world)
        assert session.cache is not None
        first, again = seen(session), seen(session)
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
        assert (session.cache.counts.computed, session.cache.counts.read) == (2, 2)
        with session.whole_model() as model:
            session.evaluator.evaluate(model, "test")
            evaluated = session.cache.counts.computed
            session.evaluator.evaluate(model, "test")
        assert session.cache.counts.computed == evaluated

        state = session.full_state()
        name = next(name for name in state.model if name.endswith("weight"))
        changed = {**state.model, name: state.model[name] * 1.5}
        session.load_full_state(replace(state, model=changed))
        other = seen(session)
        assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))
        with session.whole_model() as model:
            session.evaluator.evaluate(model, "test")
        assert session.cache.counts.computed == 2 * evaluated


def test_batches_may_be_smaller_than_what_the_frozen_part_is_tried_on(
    words: list[str], tmp_path: Path
) -> None:
    """Bi-Tuning keeps a key for each picture of a global batch, and has no room for more."""
    bi_tuning = ("method=bi_tuning", "method.layers=layer4", "augment.mixup=0", "augment.flip=0")
    batch = ("train.global_batch=2", "train.micro_batch=2", f"train.cache={tmp_path}")
    recipe = load_recipe([*words, *SHORT, *bi_tuning, *batch])
    with join_world(recipe) as world:
        session = build_session(recipe, world)
        assert session.cache is not None
        with session.epoch(0) as batches:
            assert len(next(batches).images) == 2
