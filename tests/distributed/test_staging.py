"""A run whose ranks meet through a file and read copies of the data on their node."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.distributed.launch import rank_environment, start
from tests.distributed.watching import LoaderWithCallback, ranks, watched
from tests.kills.same import differences

pytestmark = pytest.mark.distributed


def start_ranks(
    stack: ExitStack, words: list[str], folder: Path, number: int
) -> list[LoaderWithCallback]:
    """Two ranks as a scheduler starts them: nobody knows an address."""
    meeting = {"ADAFILTER_MEETING": str(folder / f"meeting.1.{number}")}
    started = []
    for rank in range(2):
        place = rank_environment(rank, 2, 0) | meeting | {"SCRATCH_HERE": str(folder / "scratch")}
        for key in ("MASTER_ADDR", "MASTER_PORT"):
            del place[key]
        process = start(words, folder=folder, environment=place)
        started.append(stack.enter_context(watched(process)))
    return started


def test_copies_on_the_node_do_not_change_the_numbers(words: list[str], tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    words = [*words, "train.epochs=1"]
    staged = ["train", *words, f"run_dir={run}", "data.stage_to=$SCRATCH_HERE/data"]
    with ExitStack() as stack:
        both = start_ranks(stack, staged, tmp_path, 0)
        both[0].wait_for("data are read from $SCRATCH_HERE/data: copied on")
        (copy,) = (tmp_path / "scratch" / "data").iterdir()
        for rank in both:
            opened = Path(f"/proc/{rank.process.pid}/maps").read_text()
            assert str(copy / "train.beton") in opened
        for rank in both:
            assert rank.end().code == 0, rank.output
    with ranks(["train", *words, f"run_dir={plain}"], 2, tmp_path) as both:
        for rank in both:
            assert rank.end().code == 0, rank.output
    assert differences(run, plain) == []

    # A later start on the node finds the copy.
    with ExitStack() as stack:
        both = start_ranks(
            stack,
            ["resume", str(run), "train.epochs=2", "optim.schedule_on_extend=hold"],
            tmp_path,
            1,
        )
        both[0].wait_for("data are read from $SCRATCH_HERE/data: there already on")
        for rank in both:
            assert rank.end().code == 0, rank.output
