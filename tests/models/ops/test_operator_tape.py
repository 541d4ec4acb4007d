"""The stand-in for CUDA graphs: work is done again on the same memory, without its Python code."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.models.ops.device_graph import (
    CudaRecorder,
    Recorder,
    agree,
    nearly,
)
from adafilter_dist.models.ops.operator_tape import NotRecordable, TapeRecorder
from tests.models.ops.conftest import Run


def test_a_replay_is_the_work_on_new_values_in_the_same_memory() -> None:
    torch.manual_seed(0)
    layer, runs = nn.Linear(4, 3), []
    x, out, gradient = torch.randn(5, 4), torch.empty(5, 3), torch.empty(3, 4)
    generator = torch.Generator().manual_seed(1)

    def work() -> None:
        runs.append(len(runs))
        noise = torch.rand(5, 3, generator=generator)
        y = (layer(x) + noise + torch.rand(5, 1)).relu()
        (made,) = torch.autograd.grad(y.square().sum(), [layer.weight])
        with torch.no_grad():
            out.copy_(y)
            gradient.copy_(made)

    replay = TapeRecorder().record(work, [generator])
    for seed in (2, 3):
        with torch.no_grad():
            x.normal_()
            layer.weight.mul_(1.1)
        for again in (work, replay):
            torch.manual_seed(seed)
            generator.manual_seed(seed)
            again()
            if again is work:
                wanted = out.clone(), gradient.clone()
                out.zero_(), gradient.zero_()
        assert torch.equal(out, wanted[0]) and torch.equal(gradient, wanted[1])
    assert runs == [0, 1, 2]


def test_what_is_nearly_the_same() -> None:
    wanted = [torch.ones(3), torch.full((2, 2), 100.0, dtype=torch.float64), torch.zeros(0)]
    close = [wanted[0] + 0.5, wanted[1] + 0.1, wanted[2]]
    assert agree(wanted, wanted) and not agree(close, wanted)
    assert nearly(close, wanted)
    assert not nearly([wanted[0] + 3, wanted[1], wanted[2]], wanted)
    assert not nearly([wanted[0], wanted[1] * float("nan"), wanted[2]], wanted)


def test_views_writes_in_place_and_lists_are_replayed() -> None:
    x, total = torch.arange(6.0), torch.zeros(2, 3)

    def work() -> None:
        rows = x.view(2, 3)
        first, second = torch.split(rows, 1)
        second.add_(first)
        total.add_(torch.cat([second, first]))
        torch._foreach_add_([total, rows], 1.0)

    replay = TapeRecorder().record(work)
    x.copy_(torch.arange(6.0))
    total.zero_()
    work()
    wanted = x.clone(), total.clone()
    x.copy_(torch.arange(6.0))
    total.zero_()
    replay()
    assert torch.equal(x, wanted[0]) and torch.equal(total, wanted[1])


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: 1 if x.any() else 2,
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "put": lambda x: x.index_put_((x > 0,), torch.ones(())),
    "list": lambda x: torch.tensor([1.0, 2.0]) + x,
    "equal": lambda x: torch.equal(x, x + 1),
    "svd": lambda x: torch.linalg.svdvals(x.outer(x)),
}


@pytest.mark.parametrize("how", WAITS)
def test_what_a_graph_cannot_hold_is_refused(how: str) -> None:
    x = torch.tensor([1.0, 2.0])

    def work() -> None:
        WAITS[how](x)

    with pytest.raises(NotRecordable, match="the host"):
        TapeRecorder().record(work)


def check_layers_by_kernels(device: str) -> None:
    if device == "cuda":
        here = torch.device("cuda", torch.cuda.current_device())
        with torch.cuda.stream(torch.cuda.Stream(here)):
            check_recorder(device, CudaRecorder(here))
    else:
        check_recorder(device, TapeRecorder())


def check_recorder(device: str, recorder: Recorder) -> None:
    from adafilter_dist import convert
    from adafilter_dist.models.gating import step_statistics
    from adafilter_dist.models.gating.micro_batches import in_micro_batches
    from adafilter_dist.models.ops import device_kind

    torch.manual_seed(0)
    layers = [
        each
        for width in (3, 4)
        for each in (nn.Conv2d(width, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    ]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = convert(plain, size=8).float().train().to(device)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    x, labels = torch.randn(4, 3, 8, 8, device=device), torch.arange(4, device=device) % 3
    out = [torch.empty_like(parameter) for parameter in trained]

    def work() -> None:
        with in_micro_batches(2):
            loss = nn.functional.cross_entropy(net(x), labels)
        made = torch.autograd.grad(loss, trained, allow_unused=True)
        with torch.no_grad():
            for into, each in zip(out, made, strict=True):
                into.zero_() if each is None else into.copy_(each)

    def found(how: Callable[[], None]) -> list[Tensor]:
        step_statistics.discard(net)
        how()
        return [*(each.clone() for each in out), step_statistics.collect(net).clone()]

    with patch.object(device_kind, "on_gpu", lambda x: True):
        for _ in range(2):
            work()
        replay = recorder.record(work)
        with torch.no_grad():
            x.normal_()
            for parameter in trained:
                parameter.mul_(1.1)
        wanted = found(work)
        replayed = found(replay)
    assert agree(replayed, wanted)
    assert sum(float(each.abs().sum()) > 0 for each in wanted) > len(wanted) / 2


@pytest.mark.slow
def test_triton_s_kernels_are_recorded(run: Run) -> None:
    run(check_layers_by_kernels)
