"""On whatever number of ranks a run goes on: the same samples, crops and micro-batches (E4)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.conftest import run_folder
from tests.distributed.launch import free_port, rank_environment
from tests.distributed.test_world_sizes import rows
from tests.kills.attempts import ForkServer

pytestmark = pytest.mark.distributed
LOADERS = ("numba", "ffcv")
FAST = ("train.epochs=1", "evaluate.gates=false")
Consumed = dict[tuple[int, int], dict[str, Any]]
Train = Callable[..., Consumed]


@pytest.fixture(scope="module")
def train(server: ForkServer, words: list[str]) -> Train:
    """Attempt a run in a folder once, and tell what it consumed by step and micro-batch."""

    def attempt(folder: Path, world_size: int, *more: str, stop_at: int | None = None) -> Consumed:
        record = folder / f"{world_size} ranks up to {stop_at}"
        record.mkdir(parents=True)
        # Any rank may be asked: the last one here.
        asked = {} if stop_at is None else {"SIGNALS": f"{world_size - 1}:{stop_at}:TERM"}
        port = free_port()
        ranks = []
        for rank in range(world_size):
            place = rank_environment(rank, world_size, port) if world_size > 1 else {}
            ranks.append(
                server.fork(
                    ["train", *words, *FAST, *more],
                    folder=folder,
                    environment={**place, **asked, "RECORD": str(record)},
                    before=["tests.distributed.recorder", "install"],
                )
            )
        codes = [rank.wait() for rank in ranks]
        assert codes == [0 if stop_at is None else 75] * world_size, ranks[0].printed()
        return consumed(record)

    return attempt


Alone = Callable[[str], tuple[Path, Consumed]]


@pytest.fixture(scope="module")
def alone(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """``alone(loader)``: the folder of a whole run on one rank, and what it consumed."""

    @cache
    def run(loader: str) -> tuple[Path, Consumed]:
        folder = tmp_path_factory.mktemp("alone")
        return folder, train(folder, 1, f"data.loader={loader}")

    return run


def consumed(record: Path) -> Consumed:
    """What the ranks recorded; each micro-batch is computed by one of them."""
    found: Consumed = {}
    for file in record.glob("rank-*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            key = entry["step"], entry["micro_batch"]
            assert key not in found, f"twice: step, micro-batch {key}"
            found[key] = entry
    return found


def losses_agree(ours: Path, theirs: Path) -> None:
    found, wanted = rows(run_folder(ours), "train"), rows(run_folder(theirs), "train")
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert abs(row["loss"] - other["loss"]) <= 1e-9, row["step"]


@pytest.mark.parametrize("loader", LOADERS)
def test_two_ranks_then_one_then_four_then_two_in_one_epoch(
    train: Train, alone: Alone, tmp_path: Path, loader: str
) -> None:
    word = f"data.loader={loader}"
    undisturbed, wanted = alone(loader)
    steps = 1 + max(step for step, _ in wanted)
    assert len(wanted) == 4 * steps and steps > 20
    assert len({entry["pixels"] for entry in wanted.values()}) == len(wanted)

    folder = tmp_path / "elastic"
    found: Consumed = {}
    for world_size, stop_at in ((2, 3), (1, 9), (4, 14), (2, None)):
        part = train(folder, world_size, word, stop_at=stop_at)
        assert not part.keys() & found.keys(), "a step was repeated"
        assert len({step for step, _ in part}) > 3
        found |= part
    assert found == wanted
    losses_agree(folder, undisturbed)


@pytest.mark.parametrize("loader", LOADERS)
def test_three_ranks_share_eight_micro_batches(train: Train, tmp_path: Path, loader: str) -> None:
    more = (f"data.loader={loader}", "train.global_batch=32")
    wanted = train(tmp_path / "alone", 1, *more)
    assert {micro_batch for _, micro_batch in wanted} == set(range(8))
    assert train(tmp_path / "three", 3, *more) == wanted
    losses_agree(tmp_path / "three", tmp_path / "alone")


def test_the_other_loader_goes_on_with_the_same_pixels(
    train: Train, alone: Alone, tmp_path: Path
) -> None:
    undisturbed, wanted = alone("numba")
    folder = tmp_path / "both"
    found = train(folder, 1, "data.loader=ffcv", stop_at=9)
    found |= train(folder, 1, "data.loader=numba")
    assert found == wanted
    losses_agree(folder, undisturbed)
    assert "not bit-exact" not in (folder / "printed.txt").read_text()


def test_other_pixels_go_on_with_the_same_samples_and_say_so(
    train: Train, alone: Alone, tmp_path: Path
) -> None:
    _, wanted = alone("numba")
    folder = tmp_path / "both"
    found = train(folder, 1, "data.loader=torchvision", stop_at=9)
    # Unless it is told otherwise, it keeps to the pixels that it began with.
    found |= train(folder, 1, "data.loader=auto", stop_at=18)
    assert "not bit-exact" not in (folder / "printed.txt").read_text()
    found |= train(folder, 1, "data.loader=numba")
    assert found.keys() == wanted.keys()
    for key, entry in found.items():
        assert (entry["samples"], entry["labels"]) == (
            wanted[key]["samples"],
            wanted[key]["labels"],
        )
    said = (folder / "printed.txt").read_text()
    assert "continuing, not bit-exact: loader torchvision -> numba changed" in said


def test_ranks_that_would_decode_to_other_pixels_do_not_start(
    server: ForkServer, words: list[str], tmp_path: Path
) -> None:
    port = free_port()
    ranks = [
        server.fork(
            ["train", *words, *FAST, "data.loader=auto"],
            folder=tmp_path,
            environment=rank_environment(rank, 2, port),
            before=["tests.distributed.without_numba", "install"] if rank else (),
        )
        for rank in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [2, 2], ranks[0].printed()
    said = ranks[0].printed()
    assert "data.loader: rank 0 on" in said and "decodes by numba, rank 1 on" in said
