"""The reference of the four passes against torch's BatchNorm and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.ops import passes_reference as passes
from tests.models.ops.layers import NAMES, by_autograd, by_passes, random_layer


def channels_last(y: Tensor) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("gates", ["soft", "hard", "ones", "zeros"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("mean_used", [False, True])
def test_a_layer_of_them_is_batchnorm_gates_and_relu_forward_and_backward(
    gates: str, relu: bool, residual: bool, stacked: bool, mean_used: bool
) -> None:
    layer = random_layer((3, 5, 4, 7), residual=residual, relu=relu, gates=gates)
    dout = torch.randn(3, 5, 4, 7, dtype=torch.float64)
    dmean = torch.randn(3, 5, dtype=torch.float64) if mean_used else None
    out, gradients = by_passes(passes, layer, dout, dmean, stacked=stacked)
    expected, wanted = by_autograd(layer, dout, dmean)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert len(gradients) == len(wanted)
    for name, gradient, other in zip(NAMES, gradients, wanted, strict=False):
        torch.testing.assert_close(
            gradient, other, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_far_from_zero_keep_their_digits(offset: float) -> None:
    y = torch.randn(4, 3, 17, 9) + offset
    mean, var = passes.moments(y)
    exact = y.double()
    centre = exact.mean((0, 2, 3))
    torch.testing.assert_close(mean.double(), centre, rtol=1e-6, atol=1e-6)
    square = (exact - centre[:, None, None]).square().mean((0, 2, 3))
    torch.testing.assert_close(var.double(), square, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_activations_keep_their_dtype_and_sums_are_wide(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.randn(2, 3, 5, 4).to(dtype)
    a, m = torch.rand(2, 3, dtype=wide), torch.rand(3, dtype=wide)
    out, mean = passes.blend(y, y, a, a, a, y, True)
    dy1, dy2, dz = passes.spread(y, None, out, y, y, m, m, a, m, m, a, m, m, want_residual=True)
    dy, none = passes.spread(y, None, out, y, y, m, m, a, m, m, a, m, m, stacked=True)
    assert dz is not None and none is None
    assert {t.dtype for t in (out, dy1, dy2, dz, dy)} == {dtype}
    assert all(channels_last(t) for t in (out, dy1, dy2, dz, dy))
    assert torch.equal(dy, torch.cat((dy1, dy2), 1))
    assert torch.equal(dz, torch.where(out > 0, y, 0))
    small = (mean, *passes.moments(y), *passes.sums(y, None, out, y, y, m, m))
    assert {t.dtype for t in small} == {wide}


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_coefficient_of_zero_leaves_infinity_and_nan_out(bad: float) -> None:
    y1, y2 = torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), bad)
    a, b = torch.rand(2, 3) + 0.1, torch.randn(2, 3)
    expected = a[:, :, None, None] * y1 + b[:, :, None, None]
    torch.testing.assert_close(passes.blend(y1, y2, a, torch.zeros(2, 3), b)[0], expected)
    torch.testing.assert_close(passes.blend(y2, y1, torch.zeros(2, 3), a, b)[0], expected)
    assert not passes.blend(y1, y2, a, a, b, None, True)[0][0, 0, 0, 0].isfinite()


def test_any_dense_layout_gives_the_same() -> None:
    both = torch.randn(2, 6, 4, 5).contiguous(memory_format=torch.channels_last)
    halves = both.split(3, 1)
    rows = [half.contiguous() for half in halves]
    a, m = torch.rand(2, 3), torch.rand(3)
    (y1, y2), (z1, z2) = halves, rows
    out, _ = passes.blend(y1, y2, a, 1 - a, a, y1, True)
    assert torch.equal(out, passes.blend(z1, z2, a, 1 - a, a, z1, True)[0])
    torch.testing.assert_close(passes.moments(y1), passes.moments(z1))
    torch.testing.assert_close(
        passes.sums(y2, a, out, y1, y2, m, m), passes.sums(z2, a, out.contiguous(), z1, z2, m, m)
    )
