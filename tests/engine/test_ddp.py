"""The DDP engine in one process: accumulation, clipping, overflow, engine-neutral state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.distributed import join_world
from adafilter_dist.engine import Engine, build_engine
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, load_recipe


def recipe_of(tmp_path: Path, *words: str) -> Recipe:
    file = tmp_path / "tiny.yaml"
    file.write_text("name: tiny\ndata: imagefolder\n")
    fixed = ["train.global_batch=8", "train.micro_batch=2", "engine.device=cpu"]
    return load_recipe([f"recipe={file}", *fixed, *words])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    for key in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))


def build(recipe: Recipe, world: object) -> Engine:
    model = network()
    groups = [{"name": "all", "params": list(model.parameters()), "lr": 0.1, "weight_decay": 1e-3}]
    return build_engine(model, groups, recipe, world)  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.arange(8) % 5


def accumulate(engine: Engine, scale: float = 1.0) -> None:
    images, labels = batch()
    for number in range(4):
        part = slice(2 * number, 2 * number + 2)
        with engine.micro_batch(last=number == 3):
            logits = engine.forward(images[part].to(engine.dtype))
            engine.backward(functional.cross_entropy(logits, labels[part]) * scale)


def test_accumulated_step_is_the_whole_batch_step(tmp_path: Path, alone: None) -> None:
    recipe = recipe_of(tmp_path, "train.precision=fp64", "optim.nesterov=true")
    images, labels = batch()
    with join_world(recipe) as world:
        engine = build(recipe, world)
        reference = network().double()
        optimizer = torch.optim.SGD(
            reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        for factor in (1.0, 0.5):
            accumulate(engine)
            assert engine.step(factor)
            optimizer.param_groups[0]["lr"] = 0.1 * factor
            optimizer.zero_grad()
            functional.cross_entropy(reference(images), labels).backward()
            optimizer.step()
        for (name, wanted), found in zip(
            reference.named_parameters(), engine.model.parameters(), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, msg=name)


def test_clipping_limits_the_whole_gradient(tmp_path: Path, alone: None) -> None:
    recipe = recipe_of(
        tmp_path, "train.clip_norm=0.01", "train.precision=fp64", "optim.weight_decay=0"
    )
    with join_world(recipe) as world:
        engine = build(recipe, world)
        before = [p.detach().clone() for p in engine.model.parameters()]
        accumulate(engine, scale=100.0)
        # The engine's groups carry their own decay; take it away to see the clipped gradient.
        for group in engine._optimizer.param_groups:  # type: ignore[attr-defined]
            group["weight_decay"] = 0.0
        engine.step(1.0)
        moved = torch.cat(
            [(a - b).flatten() for a, b in zip(before, engine.model.parameters(), strict=True)]
        )
        assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_an_fp16_overflow_skips_the_step_and_halves_the_scale(tmp_path: Path, alone: None) -> None:
    recipe = recipe_of(tmp_path, "train.precision=fp16")
    with join_world(recipe) as world:
        engine = build(recipe, world)
        before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
        scale = engine.full_state().scaler["scale"]
        accumulate(engine, scale=float("inf"))
        assert not engine.step(1.0)
        assert all(torch.equal(p, before[n]) for n, p in engine.model.named_parameters())
        assert engine.full_state().optimizer == {}
        assert engine.full_state().scaler["scale"] == scale / 2
        accumulate(engine)
        assert engine.step(1.0)
        assert any(not torch.equal(p, before[n]) for n, p in engine.model.named_parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_is_by_name_and_goes_on_to_the_bit(tmp_path: Path, alone: None, name: str) -> None:
    recipe = recipe_of(tmp_path, f"optim.name={name}")

    def steps(engine: Engine, number: int) -> None:
        for _ in range(number):
            accumulate(engine)
            engine.step(1.0)

    with join_world(recipe) as world:
        whole = build(recipe, world)
        steps(whole, 2)
        kept = whole.full_state()
        kept.model = {k: v.clone() for k, v in kept.model.items()}
        kept.optimizer = {k: v.clone() for k, v in kept.optimizer.items()}
        assert any(key.startswith("0.weight/") for key in kept.optimizer)
        steps(whole, 2)
        fresh = build(recipe, world)
        steps(fresh, 1)  # dirtied: all of it must be replaced
        fresh.load_full_state(kept)
        steps(fresh, 2)
        found, wanted = dict(fresh.full_state().tensors()), dict(whole.full_state().tensors())
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert torch.equal(found[key], wanted[key]), key


def test_a_state_of_another_model_is_refused(tmp_path: Path, alone: None) -> None:
    recipe = recipe_of(tmp_path)
    with join_world(recipe) as world:
        engine = build(recipe, world)
        state = engine.full_state()
        state.model = {k: v for k, v in state.model.items() if not k.startswith("2.")}
        with pytest.raises(UserError, match="does not fit"):
            engine.load_full_state(state)


def test_too_many_ranks_for_the_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "5", "WORLD_SIZE": "5"}
    for key, value in (ranks | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(key, value)
    recipe = recipe_of(tmp_path)
    with pytest.raises(UserError, match=r"world size 5.*only 4 micro-batches"), join_world(recipe):
        pass


def test_half_a_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for key in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    with (
        pytest.raises(UserError, match="not WORLD_SIZE, LOCAL_RANK"),
        join_world(recipe_of(tmp_path)),
    ):
        pass
    assert "WORLD_SIZE" not in os.environ
