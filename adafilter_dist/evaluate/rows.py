"""Put together what the ranks computed of their images, each image exactly once.

One row an image, placed by its position: sums run in the same order on any world size, and an
image that was dropped or seen twice is noticed instead of averaged away.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Rows:
    """Columns of ``n`` rows, filled piecemeal by position, completed over all ranks."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._n = n
        self._device = device
        self._positions: list[Tensor] = []
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, positions: Tensor, **columns: Tensor) -> None:
        """Rows of a batch: ``positions`` int64 (b,), each column (b, ...)."""
        self._positions.append(positions.cpu())
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.cpu())

    def complete(self, **empty: Tensor) -> dict[str, Tensor]:
        """Every column whole, (n, ...) on the CPU, the same on every rank.

        ``empty`` names the columns by a tensor of shape (0, ...) and the wanted dtype, so that a
        rank without images knows them too. RuntimeError unless each position came exactly once.
        """
        none = torch.empty(0, dtype=torch.int64)
        positions = torch.cat([none, *self._positions])
        if len(positions) and not (0 <= int(positions.min()) <= int(positions.max()) < self._n):
            raise RuntimeError(f"image positions outside 0..{self._n - 1}: the loader is wrong")
        seen = self._summed(torch.bincount(positions, minlength=self._n))
        if not bool((seen == 1).all()):
            missing, twice = int((seen == 0).sum()), int((seen > 1).sum())
            raise RuntimeError(
                f"of {self._n} images {missing} were not evaluated and {twice} more than once"
            )
        whole: dict[str, Tensor] = {}
        for name, like in empty.items():
            column = torch.zeros((self._n, *like.shape[1:]), dtype=like.dtype)
            # A row is zero on every rank but one, so the sum is that row, bit by bit.
            if len(positions):
                column[positions] = torch.cat(self._columns[name]).to(like.dtype)
            whole[name] = self._summed(column)
        return whole

    def _summed(self, tensor: Tensor) -> Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return tensor
        # NCCL reduces on the device only.
        moved = tensor.to(self._device)
        dist.all_reduce(moved)
        return moved.cpu()
