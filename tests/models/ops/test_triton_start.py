"""Triton that is installed and does not work: the reason in a line, instead of a traceback."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.models.ops import triton_start
from adafilter_dist.models.ops.triton_start import try_kernel, why_no_triton

pytest.importorskip("triton")


def test_a_launch_that_fails_is_a_line() -> None:
    # A kernel without a driver for its tensors fails where one without a compiler does: in its
    # first launch.
    reason = try_kernel(torch.device("cpu"))
    assert reason and "\n" not in reason
    assert "install a C compiler and Python's headers" in reason


def test_without_a_gpu_there_is_nothing_to_find_out() -> None:
    if torch.cuda.is_available():
        assert why_no_triton() == ""
    else:
        assert why_no_triton() == "" and triton_start._reason is None
