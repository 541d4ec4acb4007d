"""A bug on one rank: which one it was can be seen afterwards, though all of them ended."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from adafilter_dist.status import read_run
from tests.distributed.launch import adafilter, free_port, rank_environment, start
from tests.distributed.watching import watched

pytestmark = pytest.mark.distributed


def test_status_names_the_rank_that_failed_first(words: list[str], tmp_path: Path) -> None:
    rank, run, port = 1, tmp_path / "run", free_port()
    command = ["train", *words, "checkpoint.every=3", f"run_dir={run}"]
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                watched(
                    start(
                        command,
                        folder=tmp_path,
                        module="tests.distributed.crashing",
                        environment=rank_environment(each, 2, port) | {"CRASH_RANK": str(rank)},
                    )
                )
            )
            for each in range(2)
        ]
        ended = [each.end(60) for each in both]
    assert [each.code for each in ended] == [1, 1], ended
    assert [path.name for path in (run / "attempts" / "1").glob("failed.*")] == [
        f"failed.{rank}.json"
    ]
    found = read_run(run)
    assert found.state == "failed"
    assert found.failure is not None and found.failure.rank == rank
    assert found.failure.error[-1] == "ValueError: a bug on one rank"
    shown = adafilter("status", str(run), folder=tmp_path).output
    assert f"rank {rank} on {found.failure.host} failed first:" in shown
    assert "ValueError: a bug on one rank" in shown
