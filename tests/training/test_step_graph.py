"""Recorded steps have the bits of eager ones, on the stand-in for CUDA graphs.

Each test trains twice, with and without recordings, past the forwards that are eager anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.prefetch import forward_batches
from adafilter_dist.distributed import World, join_world
from adafilter_dist.engine import build_engine
from adafilter_dist.engine.ddp import DDPEngine
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.ops.device_graph import nearly
from adafilter_dist.models.ops.operator_tape import TapeRecorder
from adafilter_dist.recipe import Recipe
from adafilter_dist.training import step_graph
from adafilter_dist.training.ema import ModelEma
from adafilter_dist.training.step import TrainingStep, forwards_of
from adafilter_dist.training.step_graph import recorder_of, why_not_recorded
from tests.training.test_method_steps import METHODS, of_method
from tests.training.test_step import CLASSES, MICRO_BATCHES, M, recipe_of

pytestmark = pytest.mark.slow

STEPS = 4
Change = Callable[[int, TrainableModel, TrainingStep], None]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pictures() -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(5)
    for number in range(STEPS * MICRO_BATCHES):
        pixels = torch.randint(0, 256, (M, 32, 32, 3), dtype=torch.uint8, generator=generator)
        index = torch.arange(number * M, (number + 1) * M)
        yield MicroBatch(pixels.permute(0, 3, 1, 2), index % CLASSES, index, index % 2)


def train(
    recipe: Recipe,
    world: World,
    recorder: TapeRecorder | None,
    change: Change | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Everything that the steps leave, by name, and the lines for the user."""
    trainable = build_method(load_backbone(recipe, CLASSES), recipe)
    set_kernels(trainable.model, "reference")
    engine = build_engine(trainable.model, trainable.groups, recipe, world, trainable.rule)
    ema = ModelEma(engine, 0.8)
    step = TrainingStep(recipe, trainable, engine, world, ema, recorder)
    step.warm_up(32)
    transfer = BatchTransfer(resolve_preprocess(recipe), world.device, engine.dtype)
    counts = [len(part) for part in forwards_of(range(MICRO_BATCHES), recipe.train.together)]
    found: dict[str, Tensor] = {}
    skipped = []
    with forward_batches(pictures(), counts * STEPS, transfer, None) as batches:
        for number in range(STEPS):
            if change is not None:
                change(number, trainable, step)
            figures, overflow = step.run(
                number, 0, batches, 1 / (1 + number), stop=False, save=False, gradient=True
            )
            figures[3] = 0  # seconds of waiting
            found[f"figures {number}"] = figures
            skipped.append(overflow)
    state = engine.full_state()
    state.ema = ema.state()
    found |= {name: tensor.clone() for name, tensor in state.tensors()}
    found["skipped"] = torch.tensor(skipped)
    found["scale"] = torch.tensor(state.scaler.get("scale", 1.0))
    return found, step.new_notices()


def require_same_bits(
    recipe: Recipe, change: Change | None = None
) -> tuple[TapeRecorder, dict[str, Tensor]]:
    recorder = TapeRecorder()
    with join_world(recipe) as world:
        wanted, _ = train(recipe, world, None, change)
        found, notices = train(recipe, world, recorder, change)
    assert notices == []
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not same(found[name], tensor)] == []
    return recorder, found


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit: also the sign of zero, and NaN (a figure that was not measured)."""
    bits = [each.contiguous().flatten().view(torch.uint8) for each in (a, b)]
    return torch.equal(*bits)


GATED = {
    "gumbel, mixup": (3, "method.gate.estimator=gumbel", "augment.mixup=0.4"),
    "semhash, cutmix": (1, "method.gate.estimator=semhash", "augment.cutmix=1.0"),
    "straight-through, smoothing": (3, "optim.label_smoothing=0.1"),
    "bernoulli": (3, "method.gate.mode=bernoulli"),
    "oracle": (1, "method.gate.mode=oracle", "method.gate.oracle={a: 0, b: 1}"),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("gate", GATED)
def test_gates_penalties_and_draws(gate: str, tmp_path: Path) -> None:
    together, *words = GATED[gate]
    words += ["method.sparsity.kind=decide", "method.sparsity.weight=0.7", "train.clip_norm=5"]
    words += [f"train.micro_batches_per_forward={together}"]
    recorder, _ = require_same_bits(recipe_of(tmp_path, *words))
    # Two forwards of each size are eager; the last of a step is smaller where 3 are together.
    kinds, forwards = (1, 4) if together == 1 else (2, 2)
    assert recorder.records == kinds
    assert recorder.replays == forwards * STEPS - 2 * kinds


RECORDED = [name for name in METHODS if name != "bss"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", RECORDED)
def test_other_methods(method: str, tmp_path: Path) -> None:
    require_same_bits(of_method(tmp_path, method, "augment.mixup=0.2"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("together", "sets"), [(MICRO_BATCHES, 1), (1, 2)])
def test_what_a_recording_will_add_to_memory(together: int, sets: int, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, f"train.micro_batches_per_forward={together}")
    forwards, seen = MICRO_BATCHES // together, []

    def note(number: int, trainable: TrainableModel, step: TrainingStep) -> None:
        trained = [p for p in trainable.model.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        made = number * forwards > 2  # two forwards are eager
        assert step.recorded == made
        assert step.memory_to_come == (0 if made else sets * gradients)
        seen.append(made)

    with join_world(recipe) as world:
        train(recipe, world, TapeRecorder(), note)
    assert {True, False} == set(seen)


@pytest.mark.usefixtures("one_thread")
def test_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph, "agree", nearly)  # as where kernels are not deterministic
    require_same_bits(recipe_of(tmp_path, "train.precision=bf16", "train.channels_last=false"))


@pytest.mark.usefixtures("one_thread")
def test_the_loss_scale_of_fp16_is_that_of_the_step(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "train.precision=fp16")

    def overflow(number: int, trainable: TrainableModel, step: TrainingStep) -> None:
        if number == 2:  # the forward is recorded; other scales follow
            engine = step._engine
            assert isinstance(engine, DDPEngine)
            engine._scaler.load_state_dict(engine._scaler.state_dict() | {"scale": 2.0**60})

    _, found = require_same_bits(recipe, overflow)
    assert found["skipped"].tolist()[2:] == [True, True]
    assert found["scale"] == 2.0**58


@pytest.mark.usefixtures("one_thread")
def test_a_network_that_changes_is_recorded_anew(tmp_path: Path) -> None:
    words = ["method.gate.decision=picture", "method.gate.recipe=staged"]

    def decide(number: int, trainable: TrainableModel, step: TrainingStep) -> None:
        if number == 2:
            assert trainable.gates is not None and trainable.gates.picture is not None
            picture = trainable.gates.picture
            weight = torch.linspace(-1, 1, picture.weight.numel()).view_as(picture.weight)
            picture.decide({"weight": weight.to(picture.weight)}, 4.0)
            step.network_changed()

    recorder, _ = require_same_bits(recipe_of(tmp_path, *words), decide)
    assert recorder.records == 2


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("method=bss", "method.eta=0.1"), "_linalg_svd"),
        (("method.fixed_statistics=frozen",), "_local_scalar_dense"),
        (("method=bi_tuning",), "a replay gave other numbers than the step itself"),
    ],
)
def test_what_cannot_be_recorded_is_eager_with_a_line(
    words: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, *words)
    with join_world(recipe) as world:
        wanted, _ = train(recipe, world, None)
        found, notices = train(recipe, world, TapeRecorder())
    (line,) = notices
    assert line.startswith("train.graph=auto: steps are not replayed as a CUDA graph from here on")
    assert reason in line
    assert [name for name, tensor in wanted.items() if not same(found[name], tensor)] == []


REFUSED = {
    ("method=bss",): "method=bss waits for the singular values to converge",
    ("method=bi_tuning",): "method=bi_tuning puts keys in rows that the host counts",
    ("method.fixed_statistics=both",): "with method.fixed_statistics=both the host is told which "
    "filters were chosen",
    ("train.compile=true",): "train.compile=true puts together kernels of its own",
    ("engine=deepspeed", "train.precision=fp32"): "DeepSpeed reduces gradients while they are "
    "computed",
    ("train.graph=off",): None,
    (): "",
}


@pytest.mark.parametrize("words", REFUSED)
def test_reasons_before_anything_is_recorded(words: tuple[str, ...], tmp_path: Path) -> None:
    recipe, reason = recipe_of(tmp_path, *words), REFUSED[words]
    trainable = build_method(load_backbone(recipe, CLASSES), recipe)
    assert recorder_of(recipe, trainable, torch.device("cpu")) == (None, [])
    if reason is None:
        assert recorder_of(recipe, trainable, torch.device("cuda", 0)) == (None, [])
    else:
        assert why_not_recorded(recipe, trainable) == reason
    if reason:
        _, (line,) = recorder_of(recipe, trainable, torch.device("cuda", 0))
        assert line == f"train.graph=auto: steps are not replayed as a CUDA graph: {reason}"
