"""Runs of methods that keep more than weights: killed at any point, they end with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import run_folder
from tests.distributed.launch import free_port, rank_environment
from tests.distributed.test_world_sizes import tensors
from tests.kills.attempts import ForkServer
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
ZERO2 = ("engine=deepspeed", "engine.zero_stage=2")
SOURCE = ("model.name=small_resnet", "model.weights=FASHION_MNIST", "method.layers=.*")
# Eight steps.
SHORT = (
    *("train.epochs=1", "data.label_fraction=0.3", "augment.mixup=0"),
    *("train.precision=fp32", "evaluate.gates=false"),
)
Attempt = Callable[..., str]


@pytest.fixture
def attempt(server: ForkServer, words: list[str], request: pytest.FixtureRequest) -> Attempt:
    """Attempt a run on some ranks, which get a signal, as in "5:KILL"; what the first printed."""

    def of(folder: Path, ranks: int, *more: str, signal: str = "") -> str:
        folder.mkdir(exist_ok=True)
        port = free_port()
        zero = ZERO2[0] in more
        parent: ForkServer = request.getfixturevalue("deepspeed_server") if zero else server
        forked = [
            parent.fork(
                ["train", *words, *SHORT, *more],
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


@pytest.mark.parametrize(
    ("ranks", "words_of_it"),
    [
        (1, ("method=lp_ft",)),
        (2, ("method=lp_ft", *ZERO2)),
        (1, ("method=co_tuning", *SOURCE)),
        (1, ("method=delta", "method.maps=layer1.0.conv2", "method.pictures=8")),
    ],
    ids=["lp_ft", "lp_ft-zero2", "co_tuning", "delta"],
)
def test_killed_before_the_first_checkpoint_and_resumed_from_one(
    attempt: Attempt, tmp_path: Path, ranks: int, words_of_it: tuple[str, ...]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    attempt(whole, ranks, *words_of_it)
    attempt(killed, ranks, *words_of_it, signal="0:KILL")
    attempt(killed, ranks, *words_of_it, signal="3:TERM")
    printed = attempt(killed, ranks, *words_of_it)
    # It started twice, and not a third time from the checkpoint.
    assert printed.count("looks at the training pictures before the first step") == 2, printed
    assert differences(run_folder(killed), run_folder(whole)) == []


ABLATED = "adafilter method.shared_batchnorm=true method.gate.recurrent=false"


# What l2sp adds to the loss knows no rank, and its resuming is tested in one process.
@pytest.mark.parametrize(
    "method",
    [
        *("stochnorm", "bi_tuning", "auto_rgn", "spottune", ABLATED),
        pytest.param("l2sp", marks=pytest.mark.long),
    ],
)
def test_resumed_within_an_epoch_it_has_the_same_bits_and_on_two_ranks_the_same_numbers(
    attempt: Attempt, tmp_path: Path, method: str
) -> None:
    whole, stopped, shared = (tmp_path / name for name in ("whole", "stopped", "shared"))
    words = (*f"method={method}".split(), "train.precision=fp64")
    attempt(whole, 1, *words)
    attempt(stopped, 1, *words, signal="2:TERM")
    attempt(stopped, 1, *words)
    assert differences(run_folder(stopped), run_folder(whole)) == []
    attempt(shared, 2, *words, "train.micro_batches_per_forward=2")
    wanted, ours = tensors(run_folder(whole)), tensors(run_folder(shared))
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-9, msg=name)
