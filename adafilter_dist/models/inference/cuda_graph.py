"""A whole forward as one CUDA graph: what is launched is recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adafilter_dist.errors import UserError
from adafilter_dist.models.inference.selected_conv import InferenceNet

_WARM_UP = 3


def capture(model: InferenceNet, example: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of images shaped like ``example`` (N, 3, H, W), on its GPU, that gives the logits.

    The batch size, dtype and layout are those of ``example``; the weights stay where they are, so
    the model must not be moved; overrides and observers of gates are those of this moment, and an
    override would make the graph wait for the GPU, which CUDA refuses. One call at a time. Written
    for CUDA and never run: no machine with a GPU was at hand. Raises UserError elsewhere than on
    CUDA and where gates are overridden or observed.
    """
    if not example.is_cuda:
        raise UserError(f"capture: the example is on {example.device}; CUDA graphs need a GPU")
    if model.gate.overrides or model.gate.observers:
        raise UserError("capture: gates are overridden or observed; capture outside of that")
    images = example.clone(memory_format=torch.preserve_format)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), _started_one_by_one(model):
        # Kernels are compiled and chosen before they are recorded, on a stream of their own.
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                model(images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(images)

    def replay(new: Tensor) -> Tensor:
        if new.shape != images.shape:
            raise UserError(f"captured for {tuple(images.shape)}, called with {tuple(new.shape)}")
        images.copy_(new)
        graph.replay()
        return logits.clone()

    return replay


@contextmanager
def _started_one_by_one(model: InferenceNet) -> Iterator[None]:
    """Inside, the model replays nothing that it has recorded itself."""
    before, model.replay = model.replay, False
    try:
        yield
    finally:
        model.replay = before
