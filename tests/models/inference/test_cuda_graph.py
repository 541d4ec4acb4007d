"""CUDA graphs: what is refused before anything is recorded."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.gate_overrides import constant, override_gates
from adafilter_dist.models.inference.cuda_graph import capture
from adafilter_dist.models.inference.selected_conv import for_inference
from tests.models.networks import images, pairs

needs_gpu = [
    pytest.mark.may_skip("needs a GPU"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_without_a_gpu() -> None:
    fast = for_inference(convert(pairs(), size=16))
    with pytest.raises(UserError, match="on cpu; CUDA graphs need a GPU"):
        capture(fast, images(2, 16))


@pytest.mark.parametrize("_", [pytest.param(None, marks=needs_gpu)])
def test_a_recorded_forward_is_the_forward(_: None) -> None:
    fast = for_inference(convert(pairs(), size=16)).float().cuda()
    x = images(4, 16, torch.float32).cuda().contiguous(memory_format=torch.channels_last)
    replay = capture(fast, x)
    with torch.no_grad():
        for pictures in (x, x.flip(0)):
            torch.testing.assert_close(replay(pictures), fast(pictures))
    with pytest.raises(UserError, match="captured for"):
        replay(x[:1])
    with override_gates(fast, constant(1.0)), pytest.raises(UserError, match="overridden"):
        capture(fast, x)
