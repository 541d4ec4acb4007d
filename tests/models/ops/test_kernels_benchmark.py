"""benchmarks/kernels.py: its counting, its table, and what it says without a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.ops.worker import Worker

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load(str(BENCHMARK))


def load(path: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location("benchmark_kernels", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their module up.
    sys.modules["benchmark_kernels"] = module
    specification.loader.exec_module(module)
    return module


def test_bytes_are_those_of_the_tensors_moved(benchmark: ModuleType) -> None:
    y = torch.empty(2, 5, 3, 4, dtype=torch.bfloat16)
    nc = torch.empty(2, 5)
    sums, spread = [y] * 4 + [nc] * 4, [y] * 7 + [nc] * 2
    between = [nc] * 5  # gates, the three sums, the gradient of the gates
    moved = {
        "statistics": [y, y, nc],
        "choose": [y, y, y, y, nc, nc],
        "layer_gradients": [*sums, *between, *spread],
    }
    assert set(moved) == set(benchmark.MOVED)
    for name, tensors in moved.items():
        counted = sum(tensor.nbytes for tensor in tensors)
        assert benchmark.operator_bytes(name, 2, 5, 12, 2) == counted


def test_flops_are_torch_s(benchmark: ModuleType) -> None:
    for conv in benchmark.CONVS:
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            x = torch.empty(3, conv.channels, conv.size, conv.size)
            weight = torch.empty(conv.filters, conv.channels, conv.kernel, conv.kernel)
            torch.conv2d(x, weight, stride=conv.stride, padding=conv.padding)
        assert benchmark.conv_flops(conv, 3) == counter.get_total_flops(), conv.label


def test_distance_is_relative_and_the_largest(benchmark: ModuleType) -> None:
    ten = torch.tensor([10.0, -1.0])
    assert benchmark.distance(ten, ten) == 0
    assert benchmark.distance((ten, ten + 1), (ten, ten)) == pytest.approx(0.1)


def test_the_table_has_a_line_for_each_row(benchmark: ModuleType) -> None:
    row = benchmark.Row("blend", "64 at 56", 0.1234, 2345.6, "GB/s", 0.78, 1.5, 3e-3)
    last = benchmark.markdown([row]).splitlines()[-1]
    assert last == "| blend | 64 at 56 | 0.123 | 2346 GB/s | 78% | 1.500 | 3e-03 |"


def check_operators(path: str) -> None:
    benchmark = load(path)
    benchmark.DEVICE, benchmark.OUTPUTS = "cpu", ((5, 3), (17, 6))

    class Watch:
        def seconds(self, call: Callable[[], object]) -> float:
            call()
            return 1.0

    rows = list(benchmark.time_operators(Watch(), 3, torch.float32, 1e9))
    assert [row.kernel for row in rows] == [*benchmark.MOVED] * 2
    assert all(row.error < 1e-4 for row in rows), rows


@pytest.mark.slow
def test_its_operators_compute_what_plain_pytorch_does(interpreter: Worker) -> None:
    interpreter.run(check_operators, str(BENCHMARK))


@pytest.mark.slow
def test_without_a_gpu_it_ends_with_one_line_and_2() -> None:
    ended = subprocess.run(
        [sys.executable, BENCHMARK],
        env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCHMARK.parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "error: benchmarks/kernels.py times kernels on a CUDA device; there is none"
    ]
