"""Checkpoints: verified, the newest good one, frozen weights once, the oldest format for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adafilter_dist.checkpoint.store import Checkpoints, NotFiniteError, Position, check_finite
from adafilter_dist.errors import UserError
from adafilter_dist.system.sealed_files import read_manifest, write_manifest
from tests.checkpoint.saves import attempt, hurt, newest, save, state

DAMAGES = ["truncated", "flipped", "emptied", "removed"]


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 3)
    loaded = Checkpoints(tmp_path).load(folder)
    assert loaded.position == Position(step=3)
    assert loaded.state.scaler == {"scale": 65536.0}
    assert loaded.manifest["attempt"] == 1 and loaded.manifest["run_hash"] == "x"
    wanted = dict(state(3.0).tensors())
    read = dict(loaded.state.tensors())
    assert read.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_keeps_the_newest_and_nothing_temporary(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "frozen.0.safetensors",
        "frozen.1.safetensors",
        "step-000000002",
        "step-000000003",
    ]


def test_frozen_weights_are_stored_once_a_run(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 1)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "conv.frozen_weight" not in file.keys()  # noqa: SIM118 (not a dict)
    copy = tmp_path / "checkpoints" / "frozen.0.safetensors"
    before = copy.stat().st_ino
    save(tmp_path, 2)  # another attempt
    assert copy.stat().st_ino == before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_the_one_before_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    _, last = save(tmp_path, 1, 2)
    hurt(last / name, damage)
    with attempt(tmp_path) as one:
        assert one.loaded is not None and one.loaded.position.step == 1
        assert len(one.said) == 1 and str(last) in one.said[0] and name in one.said[0]
        # The run passes the same step again and the bad folder is not in its way.
        one.save(2)
    assert newest(tmp_path) == (2, [])
    assert (last.parent / f"bad-{last.name}").is_dir()


def test_a_whole_checkpoint_folder_that_was_emptied_is_noticed(tmp_path: Path) -> None:
    _, last = save(tmp_path, 1, 2)
    for file in last.iterdir():
        file.unlink()
    step, said = newest(tmp_path)
    assert step == 1 and "manifest.json" in said[0]


def test_damaged_ones_after_the_next_save_are_not_taken_for_the_newest_again(
    tmp_path: Path,
) -> None:
    _, last = save(tmp_path, 3, 9)
    hurt(last / "state.json", "removed")
    with attempt(tmp_path) as one:
        one.save(5)  # the interval was changed: steps 5 and 7 before it comes to 9
        one.save(7)
    assert newest(tmp_path) == (7, [])
    assert sorted(p.name for p in Checkpoints(tmp_path).steps()) == [
        "step-000000005",
        "step-000000007",
    ]


def test_damaged_ones_before_the_next_save_do_not_count_as_kept(tmp_path: Path) -> None:
    _, last = save(tmp_path, 3, 6)
    hurt(last / "state.json", "removed")
    save(tmp_path, 7)
    assert newest(tmp_path) == (7, [])
    assert sorted(p.name for p in Checkpoints(tmp_path).steps()) == [
        "step-000000003",
        "step-000000007",
    ]
    assert (tmp_path / "checkpoints" / "bad-step-000000006").is_dir()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_copy_of_the_frozen_weights_is_named_and_replaced(
    tmp_path: Path, number: int, damage: str
) -> None:
    save(tmp_path, 1)
    copy = tmp_path / "checkpoints" / f"frozen.{number}.safetensors"
    good = copy.read_bytes()
    hurt(copy, damage)
    with attempt(tmp_path) as one:
        assert one.loaded is not None and one.loaded.position.step == 1
        assert len(one.said) == 1 and copy.name in one.said[0]
        one.save(2)
    assert copy.read_bytes() == good
    assert newest(tmp_path) == (2, [])


def test_both_copies_of_the_frozen_weights_come_back_from_the_source_if_it_is_the_same(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1)
    for number in (0, 1):
        hurt(tmp_path / "checkpoints" / f"frozen.{number}.safetensors", "flipped")
    with pytest.raises(UserError, match=r"both copies of the frozen weights.*nothing was deleted"):
        newest(tmp_path)
    source = {"conv.frozen_weight": torch.arange(9.0)}
    said: list[str] = []
    loaded = Checkpoints(tmp_path, frozen=source).newest(said.append)
    assert loaded is not None and "source weights" in said[-1]
    assert torch.equal(loaded.state.model["conv.frozen_weight"], torch.arange(9.0))
    other = {"conv.frozen_weight": torch.arange(9.0) + 1e-6}
    with pytest.raises(UserError, match="both copies"):
        Checkpoints(tmp_path, frozen=other).newest(print)


def test_when_all_are_damaged_it_says_so_and_deletes_nothing(tmp_path: Path) -> None:
    folders = save(tmp_path, 1, 2)
    for folder in folders:
        hurt(folder / "model.safetensors", "flipped")
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    with pytest.raises(UserError, match=r"every checkpoint is damaged.*resume=never"):
        newest(tmp_path)
    assert sorted((tmp_path / "checkpoints").rglob("*")) == before


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_states_that_are_not_finite_are_named(value: float) -> None:
    bad = state(1.0)
    bad.optimizer["conv.weight/momentum_buffer"][1, 2, 0, 0] = value
    with pytest.raises(NotFiniteError, match=r"optimizer: conv\.weight/momentum_buffer"):
        check_finite(bad)
    check_finite(state(torch.finfo(torch.float32).max))  # large is not infinite


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 1)
    manifest = read_manifest(folder / "manifest.json")
    write_manifest(folder / "manifest.json", manifest | {"format": 99})
    with pytest.raises(UserError, match="format 99"):
        Checkpoints(tmp_path).load(folder)


def test_format_1_as_version_0_1_0_wrote_it_is_read_for_ever(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(Path(__file__).with_name("format1"), run)
    loaded = Checkpoints(run).newest(print)
    assert loaded is not None
    assert loaded.position == Position(step=42, validated=3, best_metric=0.75, best_epoch=2)
    assert loaded.manifest["data_fingerprint"] == "a5acd7370b64c4dc"
    model, counted = loaded.state.model, torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(model["conv.weight"], counted)
    assert torch.equal(model["conv.frozen_weight"], counted / 7)
    assert model["bn.num_batches_tracked"].item() == 7
    assert model["head.bias"].dtype == torch.float64
    assert torch.equal(loaded.state.optimizer["conv.weight/momentum_buffer"], counted * -0.5)
    assert torch.equal(loaded.state.ema["conv.weight"], counted * 0.25)
    assert loaded.state.scaler == {"scale": 65536.0}
    save(run, 43)  # and gone on from
    assert newest(run) == (43, [])
