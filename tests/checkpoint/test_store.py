"""Checkpoints: whole or absent, verified, the newest good one, frozen weights once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adafilter_dist.checkpoint import Checkpoints, NotFiniteError, Position, check_finite
from adafilter_dist.checkpoint.files import read_manifest, write_manifest
from adafilter_dist.engine import FullState
from adafilter_dist.errors import UserError

FROZEN = frozenset({"conv.frozen_weight"})


def state(value: float) -> FullState:
    return FullState(
        model={
            "conv.weight": torch.full((4, 3, 3, 3), value).to(memory_format=torch.channels_last),
            "conv.frozen_weight": torch.arange(9.0),
            "bn.num_batches_tracked": torch.tensor(7),
        },
        optimizer={"conv.weight/momentum_buffer": torch.full((4, 3, 3, 3), -value)},
        scaler={"scale": 2.0**16},
    )


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2, frozen=FROZEN)


def save(store: Checkpoints, *steps: int) -> list[Path]:
    return [
        store.save(state(float(step)), Position(step=step), {"run_hash": "x"}) for step in steps
    ]


def newest(run: Path) -> tuple[int | None, list[str]]:
    """Step of the newest good checkpoint for a fresh process, and what was said on the way."""
    said: list[str] = []
    loaded = Checkpoints(run, frozen=FROZEN).newest(said.append)
    return (loaded.position.step if loaded else None), said


def test_round_trip_to_the_bit(store: Checkpoints) -> None:
    (folder,) = save(store, 3)
    loaded = store.load(folder)
    assert loaded.position == Position(step=3)
    assert loaded.state.scaler == {"scale": 65536.0}
    wanted = dict(state(3.0).tensors())
    read = dict(loaded.state.tensors())
    assert read.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(read[name], tensor), name


def test_keeps_the_newest_and_nothing_temporary(store: Checkpoints) -> None:
    save(store, 1, 2, 3)
    names = sorted(path.name for path in store.folder.iterdir())
    assert names == [
        "frozen.0.safetensors",
        "frozen.1.safetensors",
        "step-000000002",
        "step-000000003",
    ]


def test_frozen_weights_are_stored_once_a_run(store: Checkpoints) -> None:
    (folder,) = save(store, 1)
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "conv.frozen_weight" not in file.keys()  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_a_damaged_file_is_noticed_and_the_one_before_used(
    store: Checkpoints, tmp_path: Path, name: str, damage: str
) -> None:
    _, last = save(store, 1, 2)
    hurt(last / name, damage)
    step, said = newest(tmp_path)
    assert step == 1
    assert len(said) == 1 and str(last) in said[0]
    # The run passes the same step again and the bad folder is not in its way.
    again = Checkpoints(tmp_path, frozen=FROZEN)
    again.newest(said.append)
    save(again, 2)
    assert newest(tmp_path)[0] == 2
    assert (last.parent / f"bad-{last.name}").is_dir()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_one_damaged_copy_of_the_frozen_weights_is_replaced(
    store: Checkpoints, tmp_path: Path, damage: str
) -> None:
    save(store, 1)
    copy = tmp_path / "checkpoints" / "frozen.0.safetensors"
    good = copy.read_bytes()
    hurt(copy, damage)
    again = Checkpoints(tmp_path, frozen=FROZEN)
    assert again.newest(print) is not None
    save(again, 2)
    assert copy.read_bytes() == good


def test_when_all_are_damaged_it_says_so_and_deletes_nothing(
    store: Checkpoints, tmp_path: Path
) -> None:
    folders = save(store, 1, 2)
    for folder in folders:
        hurt(folder / "model.safetensors", "flipped")
    with pytest.raises(UserError, match=r"every checkpoint is damaged.*resume=never"):
        newest(tmp_path)
    assert all(folder.is_dir() for folder in folders)


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])


def test_a_failed_save_leaves_the_one_before(store: Checkpoints, tmp_path: Path) -> None:
    save(store, 1)
    with pytest.raises(ValueError, match="JSON"):
        store.save(state(2.0), Position(step=2, best_metric=float("nan")), {})
    assert newest(tmp_path)[0] == 1
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_states_that_are_not_finite_are_named() -> None:
    bad = state(1.0)
    bad.optimizer["conv.weight/momentum_buffer"][0, 0, 0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match=r"optimizer: conv\.weight/momentum_buffer"):
        check_finite(bad)
    check_finite(state(1.0))


def test_another_format_is_refused_by_number(store: Checkpoints) -> None:
    (folder,) = save(store, 1)
    manifest = read_manifest(folder / "manifest.json")
    write_manifest(folder / "manifest.json", manifest | {"format": 99})
    with pytest.raises(UserError, match="format 99"):
        store.load(folder)


def hurt(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
