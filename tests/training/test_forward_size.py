"""train.micro_batches_per_forward=auto: as many as fit, and the same while nothing changes.

Measured here in the memory of this process, by the passes that measure a GPU's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from adafilter_dist.distributed import World, join_world
from adafilter_dist.engine import Engine, build_engine
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.training import forward_size
from adafilter_dist.training.forward_size import (
    kept_together,
    micro_batches_together,
    peak_of_pass,
    with_forward_size,
)

SIZE, M, MICRO_BATCHES = 96, 8, 12
MIB = 2**20


class HostMeter:
    """Memory of this process beyond what it had at first; ``limit`` bytes are available."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.resets = 0
        self.reset()
        self._first = self._status("VmRSS")

    def reset(self) -> None:
        self.resets += 1
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now

    def peak(self) -> int:
        return self._status("VmHWM") - self._first

    def available(self) -> int:
        return self.limit

    def _status(self, name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(name)


class Full(HostMeter):
    """As on a GPU that has no room for a second micro-batch."""

    def reset(self) -> None:
        super().reset()
        if self.resets > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")


class Known(HostMeter):
    """Gives peaks that were measured: in a process that has run a while they vary."""

    def __init__(self, limit: int, peaks: tuple[int, ...]) -> None:
        super().__init__(limit)
        self._peaks = iter(peaks)

    def peak(self) -> int:
        return next(self._peaks)


@contextmanager
def network(*words: str, folder: Path) -> Iterator[tuple[Recipe, TrainableModel, Engine, World]]:
    file = folder / "tiny.yaml"
    file.write_text(f"name: tiny\ndata: {{name: imagefolder, resolution: {SIZE}}}\n")
    fixed = [
        *("model=resnet18", "model.weights=null", "engine.device=cpu", "engine.threads=1"),
        *(f"train.global_batch={M * MICRO_BATCHES}", f"train.micro_batch={M}"),
        "train.micro_batches_per_forward=auto",
    ]
    recipe = load_recipe([f"recipe={file}", *fixed, *words])
    with join_world(recipe) as world:
        trainable = build_method(load_backbone(recipe, 5), recipe)
        engine = build_engine(trainable.model, trainable.groups, recipe, world)
        yield recipe, trainable, engine, world


@pytest.mark.slow
def test_as_many_as_fit(tmp_path: Path) -> None:
    with network(folder=tmp_path) as (recipe, trainable, engine, world):
        net = (recipe, trainable, engine, SIZE, world)
        before = {name: value.clone() for name, value in engine.model.state_dict().items()}
        # What other threads of the process hold for a moment only adds to a peak.
        one, two, four = (
            min(peak_of_pass(*net, HostMeter(), count) for _ in range(3)) for count in (1, 2, 4)
        )
        assert two - one > 25 * MIB
        assert four == pytest.approx(one + 3 * (two - one), rel=0.15)  # a line, as it is taken for

        # As many as the room holds, in forwards of the same size.
        def together(limit: int) -> int:
            return micro_batches_together(*net, Known(limit, (one, two)), draws=False)[0]

        trained = sum(p.numel() for p in engine.model.parameters() if p.requires_grad) * 4
        assert together(20 * two) == MICRO_BATCHES
        # Room for about five: three forwards of four, rather than two of five and one of two.
        assert together(int((one + 4 * (two - one) + 2 * trained) / 0.9)) == 4
        assert together(MIB) == 1
        assert micro_batches_together(*net, Full(20 * two), draws=False)[0] == 1

        # It leaves nothing behind.
        after = engine.model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert all(p.grad is None for p in engine.model.parameters())


def test_it_is_not_measured_where_it_cannot_be_more_than_one(tmp_path: Path) -> None:
    nothing: HostMeter = None  # type: ignore[assignment]
    with network(f"train.micro_batch={M * MICRO_BATCHES}", folder=tmp_path) as net:
        recipe, *rest, world = net
        assert micro_batches_together(recipe, *rest, SIZE, world, nothing, draws=False) == (1, "")
    with network(folder=tmp_path) as (recipe, *rest, world):
        together, line = micro_batches_together(recipe, *rest, SIZE, world, nothing, draws=True)
        assert together == 1 and "draws random numbers" in line
        resolved, lines = with_forward_size(recipe, *rest, SIZE, world)
        assert resolved.train.micro_batches_per_forward == 1 and lines == []


def test_a_run_keeps_its_number_in_the_same_environment_alone() -> None:
    kept = {name: "x" for name in forward_size._SAME} | {"micro_batches_per_forward": 4}
    now = {name: "x" for name in forward_size._SAME} | {"micro_batches_per_forward": 1}
    assert kept_together(kept, now) == 4
    for name in forward_size._SAME:
        assert kept_together(kept, now | {name: "y"}) is None
    assert kept_together({}, now) is None
