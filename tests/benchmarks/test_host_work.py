"""The host's work for a step on a GPU, counted on a small network."""

from __future__ import annotations

import re

import host_work
import pytest
import torch
from bench.absent_gpu import absent_gpu
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.ops.operator_tape import TapeRecorder


def test_operations_are_counted_once_each() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    with host_work.Counting() as counting:
        net(torch.zeros(1, 3, 2, 2))
    assert counting.names["aten::convolution"] == counting.names["aten::relu"] == 1


@pytest.mark.slow
def test_a_step_by_a_gpu_s_code_path(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "resnet18", "--micro-batches", "1,2", "--repeats", "1"]
    assert host_work.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    last = re.fullmatch(r"plain (\d+) ops, AdaFilter (\d+) ops, ratio ([\d.]+)", lines[-1])
    assert last is not None
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if "resnet18" in line]
    assert [row[3] for row in rows[:4]] == ["plain", "naive", "AdaFilter", "AdaFilter, divided"]
    numbers = {(row[2], row[3]): row[4:] for row in rows}
    # The Triton kernels ran, in both settings; plain has none.
    for micro_batches in ("1", "2"):
        assert numbers[micro_batches, "plain"][5] == "0"
        assert int(numbers[micro_batches, "AdaFilter"][5].replace(",", "")) >= 6 * 20
    assert float(last[3]) == pytest.approx(int(last[2]) / int(last[1]), abs=0.01)


def test_nothing_in_a_step_by_a_gpu_s_code_path_makes_the_host_wait() -> None:
    net = host_work.variants("resnet18")[host_work.DIVIDED]
    with absent_gpu() as launches:
        step = host_work.Step(net, 2)
        step.run(lambda part: part())  # what is kept from the first step on
        before = launches.count
        # Raises at what a CUDA graph could not hold.
        TapeRecorder().record(lambda: step.run(lambda part: part()))
    assert launches.count - before >= 6 * 20


@pytest.mark.parametrize("case", [{"stride": 2}, {"padding": 1, "dilation": 2}], ids=str)
def test_convolutions_are_left_out_and_come_back(case: dict[str, int]) -> None:
    conv = nn.Conv2d(3, 4, 3, **case)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 9, 11, requires_grad=True)
    wanted = conv(x)
    with absent_gpu():
        shape = conv(x).shape
        conv(x).sum().backward()
    assert shape == wanted.shape and x.grad is not None and x.grad.shape == x.shape
    assert conv.bias is not None and conv.bias.grad is not None
    assert torch.equal(conv(x), wanted)


def test_what_it_cannot_count() -> None:
    with pytest.raises(UserError, match="groups"):
        host_work.main(["--model", "mobilenet_v2", "--micro-batches", "1"])
    with pytest.raises(UserError, match="numbers, like 1,8"):
        host_work.main(["--micro-batches", "two"])
