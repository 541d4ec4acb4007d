"""The scripts in benchmarks/ import each other by bare names, as they do when they are run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """One thread; what a benchmark pins is undone."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tuned = torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = tuned
