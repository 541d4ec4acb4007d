"""Figures of a step, read on the host a few steps later so that the device never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


class DelayedMetrics:
    """A queue of small device tensors; each comes out ``delay`` steps after it went in."""

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._queue: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, values: Tensor) -> None:
        """Start copying ``values`` (1-D) of ``step`` to the host."""
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # waiting for it leaves the core to others
            event.record()
        else:
            host = values.clone()
        self._queue.append((step, host, event))

    def ready(self, step: int) -> Iterator[tuple[int, list[float]]]:
        """Steps at least ``delay`` before ``step``, oldest first, with their values."""
        while self._queue and self._queue[0][0] <= step - self._delay:
            yield self._pop()

    def drain(self) -> Iterator[tuple[int, list[float]]]:
        """All that is left, oldest first."""
        while self._queue:
            yield self._pop()

    def _pop(self) -> tuple[int, list[float]]:
        step, host, event = self._queue.popleft()
        if event is not None:
            event.synchronize()
        return step, host.tolist()
