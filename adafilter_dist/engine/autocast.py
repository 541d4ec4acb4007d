"""Lower precision for what computes, and none for what is kept."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Autocast(nn.Module):
    """Runs `inner` under torch's autocast; parameters, gradients and buffers stay as they are."""

    def __init__(self, inner: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.inner = inner
        self._device = device.type
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        context = torch.autocast(self._device, self._dtype) if self._dtype else nullcontext()
        with context:
            logits: Tensor = self.inner(images)
        return logits
