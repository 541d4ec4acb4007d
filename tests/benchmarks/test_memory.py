"""What a step is said to keep is what it keeps."""

from __future__ import annotations

import mmap

import pytest
import torch
from bench.step_memory import peak, reset_peak, saved_for_backward
from torch import nn

CPU = torch.device("cpu")


def test_storages_saved_for_backward_are_counted_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False))
    x = torch.randn(2, 3, 6, 6)
    with saved_for_backward(net) as sizes:
        y = net(x)
    # x for the first filters; the ReLU's output, which the second convolution shares with it.
    assert sum(sizes.values()) == x.nbytes + 2 * 4 * 6 * 6 * 4
    y.sum().backward()
    with saved_for_backward(net) as sizes, torch.no_grad():
        net(x)
    assert not sizes


def test_the_peak_is_that_of_what_came_and_went() -> None:
    size = 200 * 2**20
    before = reset_peak(CPU)
    # A mapping of its own: torch's allocator may have freed memory left to give.
    with mmap.mmap(-1, size) as fresh:
        held = torch.frombuffer(fresh, dtype=torch.uint8).fill_(1)
        del held
    grown = peak(CPU) - before
    assert size * 0.95 <= grown <= size * 1.2
    # A new peak begins where memory is now, not at the old one.
    assert peak(CPU) - reset_peak(CPU) >= size * 0.8
    assert peak(CPU) - reset_peak(CPU) == pytest.approx(0, abs=20 * 2**20)
