"""Prepared launches: what is handed to the driver is what Triton itself hands to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import host_work
import pytest
import torch
from bench import absent_gpu
from torch import Tensor, nn

pytest.importorskip("triton")

from triton import knobs
from triton.runtime.jit import JITFunction

from adafilter_dist.models.ops import passes_kernels
from adafilter_dist.models.ops.launches import Launch, here

Handed = tuple[Any, ...]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return host_work.variants("resnet18")[host_work.OURS]


@pytest.fixture
def handed() -> Iterator[list[Handed]]:
    """On an absent GPU, what was handed to its driver."""
    calls: list[Handed] = []
    with (
        patch.object(absent_gpu._Kernel, "run", lambda self, *given: calls.append(given)),
        absent_gpu.absent_gpu(),
    ):
        yield calls


def as_addresses(call: Handed) -> list[Any]:
    """Without the hooks: there is nobody to call."""
    given = [*call[:7], *call[9:]]
    return [each.data_ptr() if isinstance(each, Tensor) else each for each in given]


def test_a_step_hands_on_what_triton_would(net: nn.Module, handed: list[Handed]) -> None:
    """Each launch of a step, once by Triton and once prepared, with the same tensors."""
    step = host_work.Step(net, 2)
    step.run(lambda part: part())
    prepared, kinds = Launch.__call__, set()

    def both(self: Launch, place: Any, *tensors: Tensor) -> None:
        before = len(handed)
        self._by_triton(tensors)
        prepared(self, place, *tensors)
        by_triton, ours = handed[before:]
        assert as_addresses(ours) == as_addresses(by_triton)
        assert not any(isinstance(each, Tensor) for each in ours)
        kinds.add(self._kernel.__name__)

    with patch.object(Launch, "__call__", both):
        step.run(lambda part: part())
    assert len(kinds) == 8 and len(handed) >= 16 * 20


@pytest.fixture
def launch() -> Launch:
    constants = {"ACC": torch.float32, "BLOCK_R": 4, "BLOCK_C": 4}
    return Launch(passes_kernels.moments_kernel, 3, (2, 4, 4, 1, 2, 0, 24), constants)


def bindings(launch: Launch, *calls: tuple[Tensor, ...]) -> list[bool]:
    """For each call whether Triton bound its arguments."""
    results = []
    for tensors in calls:
        with patch.object(JITFunction, "run", autospec=True, side_effect=JITFunction.run) as run:
            launch(here(tensors[0]), *tensors)
        results.append(run.called)
    return results


def test_other_kinds_of_tensors_are_other_kernels(handed: list[Handed], launch: Launch) -> None:
    y, moments = torch.zeros(64), torch.zeros(64, dtype=torch.float64)
    aligned, apart, half = (y, moments), (y[1:], moments), (y.half(), moments)
    # Four floats on, y begins at a multiple of 16 bytes again.
    calls = (aligned, (y[4:], moments), apart, apart, aligned, half, half, (y, moments[1:]))
    assert bindings(launch, *calls) == [True, False, True, False, False, True, False, True]
    assert len(handed) == len(calls)


def test_who_listens_to_launches_hears_them(handed: list[Handed], launch: Launch) -> None:
    tensors = (torch.zeros(64), torch.zeros(64, dtype=torch.float64))
    assert bindings(launch, tensors, tensors) == [True, False]

    def hook(*given: Any) -> None: ...

    knobs.runtime.launch_enter_hook.add(hook)
    try:
        assert here(tensors[0]) is None and bindings(launch, tensors) == [True]
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert bindings(launch, tensors) == [False]


def test_other_gpus_than_nvidia_s_are_left_to_triton(handed: list[Handed]) -> None:
    x = torch.zeros(1)
    assert here(x) is not None
    with absent_gpu.absent_gpu(), patch.object(absent_gpu, "GPUTarget", _amd):
        assert here(x) is None


def _amd(*given: Any) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", "gfx942", 64)


@pytest.mark.parametrize("compiled", [None, object()], ids=["nothing", "another"])
def test_a_triton_that_works_otherwise_launches_itself(
    handed: list[Handed], launch: Launch, compiled: Any
) -> None:
    tensors = (torch.zeros(64), torch.zeros(64, dtype=torch.float64))
    with patch.object(Launch, "_by_triton", lambda self, tensors: compiled):
        launch(here(tensors[0]), *tensors)
    assert bindings(launch, tensors, tensors) == [True, False]
