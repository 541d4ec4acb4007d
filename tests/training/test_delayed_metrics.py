"""Figures come out a fixed number of steps later, in order."""

from __future__ import annotations

import torch

from adafilter_dist.training.delayed_metrics import DelayedMetrics


def test_delay_order_and_copy() -> None:
    queue, values = DelayedMetrics(2), torch.zeros(1)
    seen = []
    for step in range(5):
        values.fill_(step)
        queue.push(step, values)  # a copy: the tensor is used again
        seen.append([(s, v) for s, v in queue.ready(step)])
    assert seen == [[], [], [(0, [0.0])], [(1, [1.0])], [(2, [2.0])]]
    assert list(queue.drain()) == [(3, [3.0]), (4, [4.0])]
