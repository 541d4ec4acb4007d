"""Forwards of a network for inference, recorded as CUDA graphs when they repeat, and replayed.

Has not run on a GPU yet; tests record on a CPU (`models.ops.operator_tape`). `cuda_graph.capture`
records one forward by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from adafilter_dist.models.gating.gate import GateDecisions, RecurrentGate
from adafilter_dist.models.inference.ordinary import ordinary_tensors
from adafilter_dist.models.ops import device_kind
from adafilter_dist.models.ops.device_graph import CudaRecorder, Recorder, Work, agree

Forward = Callable[[Tensor], Tensor]
_EAGER = 2
"""Forwards of a kind before one is recorded: kernels are compiled and chosen in them."""
_MOST = 4
"""Kinds of images (batch size, layout, precision) that are recorded; each keeps its activations."""


@dataclass(frozen=True)
class _Recording:
    images: Tensor
    logits: Tensor
    decisions: GateDecisions
    replay: Work


class ReplayedForward:
    """The recordings of one network. It is no part of the state and is not copied with it.

    `recorder` is made for the device at the first use, unless there is one. Recorded is what
    repeats: the same shape, layout and precision, weights unchanged, nobody looking at or
    overriding gates or modules. A recording is used once it has given what the network itself
    gives, made with other pictures.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self.refused = ""
        """Why nothing is recorded any more."""
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._seen: dict[tuple[object, ...], int] = {}
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._hooks: list[dict[Any, Any]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplayedForward:
        return ReplayedForward()

    def __reduce__(self) -> tuple[type[ReplayedForward], tuple[()]]:
        return ReplayedForward, ()

    def forget(self) -> None:
        """To be called where the network's tensors may be others."""
        self._recordings.clear()
        self._seen.clear()
        self._tensors, self._versions, self._hooks = [], [], []

    def __call__(
        self, net: nn.Module, gate: RecurrentGate, images: Tensor, forward: Forward
    ) -> Tensor:
        """``forward(images)``, replayed if it can be."""
        if not self._possible(gate, images):
            return forward(images)
        if not self._unchanged():
            self.forget()
            self._tensors = [*net.parameters(), *net.buffers()]
            self._versions = [_version(tensor) for tensor in self._tensors]
            self._hooks = [each for module in net.modules() for each in _hooks_of(module)]
        if any(self._hooks):
            return forward(images)
        key = _kind(images)
        recording = self._recordings.get(key)
        if recording is None:
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if seen <= _EAGER or len(self._recordings) == _MOST:
                return forward(images)
            wanted = forward(images)
            self._prove(gate, images, forward, wanted, key)
            return wanted
        recording.images.copy_(images)
        recording.replay()
        gate.decisions = recording.decisions
        return recording.logits.clone()

    def _possible(self, gate: RecurrentGate, images: Tensor) -> bool:
        """Whether such a call may be replayed at all."""
        return not (
            torch.compiler.is_compiling()
            or not device_kind.on_gpu(images)
            or self.refused
            or gate.overrides
            or gate.observers
            or (torch.is_grad_enabled() and images.requires_grad)
            or len(images) == 0
            or _get_current_dispatch_mode() is not None
            or (images.is_cuda and torch.cuda.is_current_stream_capturing())
        )

    def _unchanged(self) -> bool:
        # Loading other weights into them, or writing by hand, raises their versions.
        return bool(self._tensors) and self._versions == [
            _version(tensor) for tensor in self._tensors
        ]

    def _prove(
        self,
        gate: RecurrentGate,
        images: Tensor,
        forward: Forward,
        wanted: Tensor,
        key: tuple[object, ...],
    ) -> None:
        """Keep a recording if its replay gives what is ``wanted``; else record nothing any more."""
        try:
            with ordinary_tensors(), torch.no_grad():
                recording = self._record(gate, images.flip(0), forward)
                recording.images.copy_(images)
                recording.replay()
                if agree([recording.logits], [wanted]):
                    self._recordings[key] = recording
                    return
            self.refused = "a replay gave other logits than the network itself"
        except RuntimeError as error:
            self.refused = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self.forget()
        gate.discard()
        warnings.warn(f"forwards are not replayed as CUDA graphs: {self.refused}", stacklevel=4)

    def _record(self, gate: RecurrentGate, images: Tensor, forward: Forward) -> _Recording:
        if self.recorder is None:
            self.recorder = CudaRecorder(images.device)
        own = images.clone(memory_format=torch.preserve_format)
        made: list[Tensor] = []
        replay = self.recorder.record(lambda: made.append(forward(own)))
        return _Recording(own, made[0], gate.decisions, replay)


def _kind(images: Tensor) -> tuple[object, ...]:
    """Equal for images that the same recording can take, under the same settings."""
    device = images.device.type
    autocast = torch.is_autocast_enabled(device)
    return (
        *(images.shape, images.stride(), images.dtype, images.device),
        torch.get_autocast_dtype(device) if autocast else None,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _hooks_of(module: nn.Module) -> list[dict[Any, Any]]:
    return [module._forward_hooks, module._forward_pre_hooks]
