"""Work on a GPU, recorded once as a CUDA graph and replayed: what records it, and its interface.

`operator_tape` stands in for it on a CPU. `CudaRecorder` has not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

_NEARLY = 1e-2
Work = Callable[[], None]


class Recorder(Protocol):
    """Records work whose tensors lie where they are for good: its inputs, outputs and weights."""

    def record(self, work: Work, generators: Sequence[torch.Generator] = ()) -> Work:
        """``work`` as something to be called, which does it again on the same memory.

        Done again is what was launched on the device: Python code does not run again, so nothing
        may depend on a number that changes on the host. Random numbers come from torch's default
        generator and from ``generators``, as they are seeded then. What the work writes holds
        nothing of use before the first call. RuntimeError where the work cannot be recorded, such
        as where it waits for the device.
        """
        ...


class CudaRecorder:
    """CUDA graphs that share one pool of memory.

    They are recorded on the current stream, or on one of torch's where that is the default one. A
    backward must be recorded on the stream on which the parameters were made (`own_stream`): their
    places in autograd's graph belong to it, and another stream could not wait for them while it
    is recorded. One replay must be read before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work, generators: Sequence[torch.Generator] = ()) -> Work:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        current = torch.cuda.current_stream(self._device)
        stream = None if current == torch.cuda.default_stream(self._device) else current
        # Other threads bring batches and watch NCCL meanwhile: their calls are none of the graph's.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            work()
        replay: Work = graph.replay
        return replay


def agree(tensors: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether they are the same: to the bit where kernels are deterministic, else nearly."""
    if wanted[0].device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        pairs = zip(tensors, wanted, strict=True)
        return bool(torch.stack([(one == other).all() for one, other in pairs]).all())
    return nearly(tensors, wanted)


def nearly(tensors: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether all of them together differ by less than a hundredth, as |a - b| / |b|.

    The order of sums that is not fixed changes less.
    """
    pairs = zip(tensors, wanted, strict=True)
    apart = torch.nn.utils.get_total_norm([one - other for one, other in pairs])
    return bool(apart <= _NEARLY * torch.nn.utils.get_total_norm(list(wanted)))


def own_stream(device: torch.device) -> None:
    """Let this thread work on a stream of its own from now on, where graphs can be recorded."""
    torch.cuda.set_stream(torch.cuda.Stream(device))
