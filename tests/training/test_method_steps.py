"""Steps of each baseline: resumed, and with several micro-batches in a forward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.prefetch import forward_batches
from adafilter_dist.distributed import World, join_world
from adafilter_dist.engine import FullState, build_engine
from adafilter_dist.errors import UserError
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.recipe import Recipe
from adafilter_dist.training.ema import ModelEma
from adafilter_dist.training.step import TrainingStep, forwards_of
from tests.training.test_step import CLASSES, MICRO_BATCHES, pictures, recipe_of

SOME = ("model.ungated=freeze", "method.layers=layer[34]")
METHODS = {
    "finetune": ("method=finetune", *SOME),
    "finetune_last": ("method=finetune_last", "method.last=4"),
    "l2sp": ("method=l2sp", "method.alpha=0.5", *SOME),
    "spottune": ("method=spottune", "method.sample=true", *SOME),
    "layerwise_decay": ("method=layerwise_decay", "optim.lr_head=0.2"),
    "bss": ("method=bss", "method.eta=0.1"),
    "stochnorm": ("method=stochnorm",),
    "delta": ("method=delta", "method.alpha=0.1", *SOME),
    "spd": ("method=spd", *SOME),
    "auto_rgn": ("method=auto_rgn", "method.scaling=min_max"),
}
COMMON = ("optim.momentum=0.9", "optim.weight_decay=0.01", "ema.decay=0.8", "train.clip_norm=5")


def of_method(folder: Path, method: str, *words: str) -> Recipe:
    # The base's words for the gate give way to another method.
    return recipe_of(folder, *COMMON, *METHODS[method], *words)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_gradients_of_a_penalty_on_weights_are_no_reason_to_warn(tmp_path: Path) -> None:
    recipe = of_method(tmp_path, "l2sp", "train.channels_last=true")
    torch.set_warn_always(True)
    try:
        with join_world(recipe) as world, warnings.catch_warnings(record=True) as seen:
            trainable = build_method(load_backbone(recipe, CLASSES), recipe)
            engine = build_engine(trainable.model, trainable.groups, recipe, world, trainable.rule)
            TrainingStep(recipe, trainable, engine, world, None).warm_up(32)
    finally:
        torch.set_warn_always(False)
    assert [str(each.message) for each in seen if "strides" in str(each.message)] == []


def go(
    recipe: Recipe, world: World, steps: range, state: FullState | None = None
) -> tuple[FullState, dict[str, Tensor]]:
    """The state behind `steps`, and its tensors by name with the figures of each step."""
    trainable = build_method(load_backbone(recipe, CLASSES), recipe)
    engine = build_engine(trainable.model, trainable.groups, recipe, world, trainable.rule)
    ema = ModelEma(engine, recipe.ema.decay)
    step = TrainingStep(recipe, trainable, engine, world, ema)
    step.warm_up(32)
    if state is not None:
        engine.load_full_state(state)
        ema.load(state.ema)
    transfer = BatchTransfer(resolve_preprocess(recipe), world.device, engine.dtype)
    together = recipe.train.micro_batches_per_forward
    counts = [len(part) for part in forwards_of(range(MICRO_BATCHES), together)] * len(steps)
    later = islice(pictures(0), steps.start * MICRO_BATCHES, steps.stop * MICRO_BATCHES)
    found: dict[str, Tensor] = {}
    with forward_batches(later, counts, transfer, None) as batches:
        for number in steps:
            factor = 1 / (number + 1)
            figures, _ = step.run(number, 0, batches, factor, stop=False, save=False)
            found[f"loss, penalty, accuracy {number}"] = figures[:3]
    behind = engine.full_state()
    behind.ema = ema.state()
    kept = FullState(
        *({n: t.detach().clone() for n, t in part.items()} for part in _parts(behind)),
        behind.scaler,
    )
    return kept, found | dict(kept.tensors())


def _parts(state: FullState) -> tuple[dict[str, Tensor], ...]:
    return state.model, state.optimizer, state.ema


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow if m == "spottune" else ()) for m in METHODS],
)
def test_resumed_and_with_more_at_once(method: str, tmp_path: Path) -> None:
    recipe = of_method(tmp_path, method)
    with join_world(recipe) as world:
        _, whole = go(recipe, world, range(3))
        half, _ = go(recipe, world, range(1))
        _, rest = go(recipe, world, range(1, 3), half)
        assert rest.keys() <= whole.keys()
        assert [n for n, t in rest.items() if not torch.equal(t, whole[n])] == []
        recipe = of_method(tmp_path, method, "train.micro_batches_per_forward=2")
        _, twos = go(recipe, world, range(3))
        for name, tensor in whole.items():
            torch.testing.assert_close(twos[name], tensor, rtol=1e-10, atol=1e-10, msg=name)


# Their forward and backward are those of finetune.
_AS_FINETUNE = ("finetune_last", "layerwise_decay")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.long if m in _AS_FINETUNE else ()) for m in METHODS],
)
def test_resumed_in_mixed_precision(method: str, tmp_path: Path) -> None:
    recipe = of_method(tmp_path, method, "train.precision=bf16")
    with join_world(recipe) as world:
        _, whole = go(recipe, world, range(2))
        half, _ = go(recipe, world, range(1))
        _, rest = go(recipe, world, range(1, 2), half)
        assert [n for n, t in rest.items() if not torch.equal(t, whole[n])] == []


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["spd", "auto_rgn"])
def test_rules_around_the_update_are_refused_where_no_rank_has_whole_gradients(
    method: str, tmp_path: Path
) -> None:
    recipe = of_method(tmp_path, method)
    trainable = build_method(load_backbone(recipe, CLASSES), recipe)
    shared = ("engine=deepspeed", "engine.zero_stage=1", "train.precision=fp32")
    under_zero = of_method(tmp_path, method, *shared)
    line = rf"^method={method}: .*engine\.zero_stage=1 .*; use engine\.zero_stage=0 or engine=ddp$"
    with join_world(recipe) as world, pytest.raises(UserError, match=line):
        build_engine(trainable.model, trainable.groups, under_zero, world, trainable.rule)
