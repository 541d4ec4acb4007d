"""A bug on one rank: which one it was can be seen afterwards, though all of them ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.status import read_run
from tests.distributed.launch import adafilter, free_port, rank_environment
from tests.kills.attempts import ForkServer

pytestmark = pytest.mark.distributed


def test_status_names_the_rank_that_failed_first(
    server: ForkServer, words: list[str], tmp_path: Path
) -> None:
    rank, run, port = 1, tmp_path / "run", free_port()
    both = [
        server.fork(
            ["train", *words, "checkpoint.every=3", f"run_dir={run}"],
            folder=tmp_path,
            environment=rank_environment(each, 2, port) | {"CRASH_RANK": str(rank)},
            output=tmp_path / f"printed.{each}",
            before=["tests.distributed.crashing", "install"],
        )
        for each in range(2)
    ]
    codes = [each.wait(60) for each in both]
    assert codes == [1, 1], [each.printed() for each in both]
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
