"""Runs whose steps are recorded and replayed, on ranks: those of eager ones, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.conftest import run_folder
from tests.distributed.launch import free_port, rank_environment
from tests.kills.attempts import ForkServer
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
WORDS = (
    *("train.kernels=reference", "train.precision=fp32", "train.epochs=1", "evaluate.gates=false"),
    # The gate divides the pictures at step 4: from then on the network computes something else.
    "method.gate.contrast=0",
)


def train(server: ForkServer, words: list[str], folder: Path, ranks: int, how: str) -> None:
    folder.mkdir()
    port = free_port()
    forked = [
        server.fork(
            ["train", *words, *WORDS],
            folder=folder,
            environment={**rank_environment(rank, ranks, port), "RECORD": str(folder)},
            output=folder / f"printed.{rank}.txt",
            before=[f"tests.distributed.{how}", "install"],
        )
        for rank in range(ranks)
    ]
    assert [rank.wait() for rank in forked] == [0] * ranks, forked[0].printed()
    assert "train.graph" not in forked[0].printed()


def test_the_bits_of_eager_steps(server: ForkServer, words: list[str], tmp_path: Path) -> None:
    # From three ranks on the order of DDP's sums depends on its buckets. Four micro-batches are
    # shared unevenly there: one rank has two forwards, of which DDP reduces the last.
    eager, replayed, ranks = tmp_path / "eager", tmp_path / "replayed", 3
    train(server, words, eager, ranks, "recorder")
    train(server, words, replayed, ranks, "taped")
    assert differences(run_folder(replayed), run_folder(eager)) == []
    for rank in range(ranks):
        forwards = len((replayed / f"rank-{rank}.jsonl").read_text().splitlines())
        replays = len((replayed / f"replays-{rank}").read_text())
        # Two are eager, at the start and after the decision.
        assert replays == forwards - 4
