"""What the ranks find on their nodes, and copies of the data there: real processes over gloo."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from adafilter_dist.data.sources.origin import Origin
from adafilter_dist.data.stored.manifest import Manifest, StoredSplit
from adafilter_dist.distributed.nodes import NodeInfo, first_rank_of_node, warnings_about
from adafilter_dist.system.disk import ENOUGH, shared_memory, shortage
from tests.distributed.joining import Rank, outputs, start
from tests.shared.node_ranks import here

MIB, GIB = 1024**2, 1024**3
A100, V100 = "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-16GB"
ROOMY = (64 * GIB, 60 * GIB)


def node(host: str, gpu: str | None, first: int, shared: tuple[int, int] = ROOMY) -> list[NodeInfo]:
    return [NodeInfo(first + i, host, gpu, shared) for i in range(2)]


def test_nothing_is_said_of_nodes_that_are_alike() -> None:
    assert warnings_about([*node("n1", A100, 0), *node("n2", A100, 2)]) == []
    assert warnings_about(node("n1", None, 0, (64 * MIB, MIB))) == []  # gloo needs no /dev/shm
    assert (
        warnings_about([NodeInfo(0, "n1", A100, (64 * MIB, MIB))]) == []
    )  # nor does one GPU a node
    assert warnings_about([NodeInfo(0, "n1", A100, None), NodeInfo(1, "n1", A100, None)]) == []


def test_mixed_gpus_are_named_with_their_nodes() -> None:
    found = [*node("n1", A100, 0), *node("n2", V100, 2), *node("n3", A100, 4)]
    (line,) = warnings_about(found)
    assert f"4 x {A100} on n1, n3; 2 x {V100} on n2" in line
    assert "launch.gpu_type=" in line and "launch.exclude=" in line
    many = [one for i in range(9) for one in node(f"m{i}", V100, 2 * i)]
    assert (
        "on m0, m1, m2, m3, m4, m5 and 3 more" in warnings_about([*node("n1", A100, 90), *many])[0]
    )


def test_a_small_or_full_dev_shm_is_said_once() -> None:
    small, full = (64 * MIB, 64 * MIB), (64 * GIB, 10 * MIB)
    found = [*node("n1", A100, 0, small), *node("n2", A100, 2), *node("n3", A100, 4, small)]
    (line,) = warnings_about([*found, *node("n4", None, 6, small)])
    assert line == (
        "warning: /dev/shm on n1, n3: 64.0 MiB; NCCL needs more: docker run --shm-size=8g"
    )
    (line,) = warnings_about(node("n1", A100, 0, full))
    assert "/dev/shm on n1: 10.0 MiB of 64.0 GiB free" in line and "ended jobs left" in line


def test_what_counts_as_enough(tmp_path: Path) -> None:
    assert shortage(ENOUGH, ENOUGH) is None
    assert shortage(ENOUGH - 1, ENOUGH - 1) is not None
    assert shared_memory(tmp_path / "none") is None
    total, free = shared_memory(tmp_path) or (0, 0)
    assert total >= free > 0


def test_the_first_rank_of_each_node() -> None:
    # As a scheduler places them that deals them out in turn.
    found = [NodeInfo(0, "n1"), NodeInfo(1, "n2"), NodeInfo(2, "n1"), NodeInfo(3, "n2")]
    assert {rank: first.rank for rank, first in first_rank_of_node(found).items()} == {
        0: 0,
        1: 1,
        2: 0,
        3: 1,
    }


def run(folder: Path, what: str, world_size: int, recorded: bytes | None = None) -> list[Rank]:
    """Ranks with a folder of two stores, and a manifest that says what these should hold."""
    shared, copy = folder / "shared", folder / "copy"
    for place in (shared, copy):
        place.mkdir()
        for name in ("train", "test"):
            (place / f"{name}.beton").write_bytes(b"data")
    if recorded is not None:
        write_manifest(shared, recorded)
    places = {"SHARED": str(shared), "ADAFILTER_CACHE": str(folder / "cache")}
    return [
        start(
            folder,
            rank,
            world_size,
            folder / "meeting",
            f"tests.shared.node_ranks:{what}",
            **places,
        )
        for rank in range(world_size)
    ]


@pytest.mark.distributed
def test_every_rank_knows_what_all_found(tmp_path: Path) -> None:
    ended = outputs(run(tmp_path, "found", 2))
    assert [code for code, _ in ended] == [0, 0], ended
    for _, text in ended:
        found = json.loads(text)
        assert [(one["rank"], one["host"], one["gpu"]) for one in found] == [
            (0, here(), None),
            (1, here(), None),
        ]


@pytest.mark.distributed
def test_a_copy_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    ended = outputs(run(tmp_path, "slow_copies", 4))
    assert [code for code, _ in ended] == [0] * 4, ended
    told = [json.loads(text.splitlines()[-1]) for _, text in ended]
    places = [Path(one["store"]).parent for one in told]
    assert places == [tmp_path / "copy"] * 2 + [tmp_path / "shared"] * 2
    (good, bad) = told[0]["lines"]
    assert re.match(r"data are read from /scratch: copied on n1 in \d+ s", good), good
    assert bad == (
        "warning: data.stage_to=/scratch not used on n2: no space: 9 GiB are needed, 1 GiB are "
        f"free; the shared files in {tmp_path / 'shared'} are read"
    )
    assert all(one["lines"] == told[0]["lines"] and one["ticks"] >= 4 for one in told)


@pytest.mark.distributed
def test_a_copier_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    ranks = run(tmp_path, "silent_copier", 3)
    ended = outputs(ranks[:2])
    ranks[2].process.kill()
    assert [code for code, _ in ended] == [1, 1], ended
    # The store ends with rank 0: rank 1 may lose it before its own patience ends.
    named = "rank 2 on n2, which copies the data there, gave no sign of life for"
    assert any(named in text for _, text in ended), ended


@pytest.mark.distributed
def test_damaged_shared_files_end_all_ranks(tmp_path: Path) -> None:
    for code, text in outputs(run(tmp_path, "damaged_source", 3)):
        assert (code, text.strip().splitlines()[-1]) == (2, "error: train.beton is damaged"), text


def write_manifest(folder: Path, content: bytes) -> None:
    """A manifest for stores that hold ``content``."""
    splits = {
        name: StoredSplit(
            file=f"{name}.beton",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            pictures=1,
        )
        for name in ("train", "test")
    }
    Manifest(
        adafilter="0",
        settings={},
        fingerprint="f",
        sources="",
        root=folder,
        origins=[Origin(root=str(folder), csv=None)],
        classes=["a"],
        skipped=0,
        duplicates=0,
        notes=[],
        **splits,
    ).write(folder)


@pytest.mark.distributed
def test_shared_files_are_verified_by_one_rank_a_node(tmp_path: Path) -> None:
    ended, shared = outputs(run(tmp_path, "verified", 3, recorded=b"data")), tmp_path / "shared"
    assert [code for code, _ in ended] == [0] * 3, ended
    told = [json.loads(text.splitlines()[-1]) for _, text in ended]
    assert all(one == told[0] | {"ticks": one["ticks"]} for one in told)
    assert Path(told[0]["store"]).parent == shared
    assert all(f"{shared} on {here()} verified" in line for line in told[0]["lines"])
    assert 1 <= len(told[0]["lines"]) <= 2  # two nodes of one name: the second may know already


@pytest.mark.distributed
def test_shared_files_that_are_not_as_recorded_end_all_ranks(tmp_path: Path) -> None:
    for code, text in outputs(run(tmp_path, "verified", 3, recorded=b"dato")):
        line = text.strip().splitlines()[-1]
        assert code == 2 and "train.beton is damaged: its sha256 is not the recorded" in line, text
        assert "adafilter prepare" in line and "data.verify=always" in line
