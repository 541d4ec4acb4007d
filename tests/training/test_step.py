"""A step with several micro-batches in a forward is the step with one in each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.prefetch import forward_batches
from adafilter_dist.distributed import World, join_world
from adafilter_dist.engine import build_engine
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.training.step import TrainingStep, forwards_of

M, MICRO_BATCHES, STEPS, CLASSES = 3, 4, 3, 5
FILTERS = ".conv.weight"


def recipe_of(folder: Path, *words: str) -> Recipe:
    file = folder / "tiny.yaml"
    file.write_text("name: tiny\ndata: {name: imagefolder, resolution: 32}\n")
    fixed = [
        *("model=timm/test_resnet", "model.weights=null", "method.gate.hidden=8"),
        "method.gate.recipe=paper",
        *(f"train.global_batch={M * MICRO_BATCHES}", f"train.micro_batch={M}"),
        *("train.precision=fp64", "engine.device=cpu", "engine.threads=1", "optim.lr=0.05"),
    ]
    return load_recipe([f"recipe={file}", *fixed, *words])


def pictures(seed: int) -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(seed)
    for number in range(STEPS * MICRO_BATCHES):
        pixels = torch.randint(0, 256, (M, 32, 32, 3), dtype=torch.uint8, generator=generator)
        pixels[:, :16] //= torch.randint(1, 9, (M, 1, 1, 1), dtype=torch.uint8, generator=generator)
        index = torch.arange(number * M, (number + 1) * M)
        yield MicroBatch(pixels.permute(0, 3, 1, 2), index % CLASSES, index)


def train(recipe: Recipe, world: World) -> dict[str, Tensor]:
    """Three steps; figures and gradients of each, and the whole state behind them."""
    trainable = build_method(load_backbone(recipe, CLASSES), recipe)
    engine = build_engine(trainable.model, trainable.groups, recipe, world)
    step = TrainingStep(recipe, trainable, engine, world, None)
    step.warm_up(32)
    found: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        for name, parameter in engine.model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {len(forwards)} {name}"] = parameter.grad.clone()

    optimizer: torch.optim.Optimizer = engine._optimizer  # type: ignore[attr-defined]
    optimizer.register_step_pre_hook(note)
    given = BatchTransfer(resolve_preprocess(recipe), world.device, engine.dtype)
    counts = [
        len(part)
        for part in forwards_of(range(MICRO_BATCHES), recipe.train.micro_batches_per_forward)
    ]
    forwards: list[int] = []
    with forward_batches(pictures(0), counts * STEPS, given, None) as batches:
        for number in range(STEPS):
            forwards.append(number)
            figures, skipped = step.run(
                number, 0, batches, 1.0, stop=False, save=False, gradient=True
            )
            assert not skipped
            figures[3] = 0  # seconds of waiting
            found[f"figures {number}"] = figures
        assert next(batches, None) is None
    return found | dict(engine.full_state().tensors())


CASES = [
    ("gumbel", "target", "augment.mixup=0.4"),
    ("semhash", "decide", "augment.cutmix=1.0"),
    ("straight_through", "l1", "augment.erasing=0.4"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "penalty", "mixing"), CASES)
def test_the_numbers_are_those_of_each_micro_batch(
    estimator: str, penalty: str, mixing: str, tmp_path: Path
) -> None:
    words = [f"method.gate.estimator={estimator}", f"method.sparsity.kind={penalty}"]
    words += ["method.sparsity.weight=0.7", mixing, "optim.label_smoothing=0.1"]
    recipe = recipe_of(tmp_path, *words)
    threads = torch.get_num_threads()
    try:
        with join_world(recipe) as world:
            wanted = train(recipe, world)
            for together in (2, 3, 4, 9):
                word = f"train.micro_batches_per_forward={together}"
                found = train(recipe_of(tmp_path, *words, word), world)
                assert found.keys() == wanted.keys()
                for name, tensor in wanted.items():
                    torch.testing.assert_close(
                        found[name], tensor, rtol=1e-10, atol=1e-10, msg=f"{together}: {name}"
                    )
    finally:
        torch.set_num_threads(threads)
    assert any(name.startswith("gradient 3 gate.") for name in wanted)
    assert any("running_var" in name for name in wanted)
    assert float(wanted["figures 2"][1]) != 0, "there is a penalty"
    for number in range(STEPS):
        of = {name: one for name, one in wanted.items() if f"gradient {number + 1} " in name}
        gate = sum(float(one.square().sum()) for name, one in of.items() if " gate." in name)
        filters = sum(float(one.square().sum()) for n, one in of.items() if n.endswith(FILTERS))
        assert float(wanted[f"figures {number}"][-1]) == pytest.approx((gate / filters) ** 0.5)


def test_forwards_of_a_share() -> None:
    assert forwards_of(range(3, 8), 2) == [range(3, 5), range(5, 7), range(7, 8)]
    assert forwards_of(range(2), 5) == [range(2)]
