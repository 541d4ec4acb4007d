from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.ops import passes_cpu, passes_reference
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.norm import Affine, Gradients, Norm

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2e-2}


def close(ours: object, theirs: object, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def activations(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(sum(shape))
    images, channels, *size = shape
    both = torch.randn(images, 2 * channels, *size, generator=draw, dtype=torch.float64).to(dtype)
    if layout == "stacked":
        first, second = both.contiguous(memory_format=torch.channels_last).chunk(2, 1)
        return first, second
    memory = torch.channels_last if layout == "last" else torch.contiguous_format
    first, second = (each.contiguous(memory_format=memory) for each in both.chunk(2, 1))
    return first, second


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", ["last", "first", "stacked"])
@pytest.mark.parametrize("shape", [(3, 37, 9, 7), (1, 1, 1, 1), (2, 520, 12, 11), (5, 64, 1, 3)])
def test_equal_the_reference(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    y1, y2 = activations(shape, dtype, layout)
    dout, out = activations(shape, dtype, "last")
    wide = accumulation_dtype(dtype)
    draw = torch.Generator().manual_seed(1)

    def small(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=wide)

    n, c = shape[:2]
    close(passes_cpu.moments(y1), passes_reference.moments(y1), dtype)
    a = (small(n, c), small(n, c), small(n, c))
    m1, m2, q1, r1 = (small(c) for _ in range(4))
    p1, p2, q2, r2 = (small(n, c) for _ in range(4))
    for kept in (None, out):
        for residual in (None, dout):
            relu = kept is not None
            blended = passes_cpu.blend(y1, y2, *a, residual, relu)
            assert blended[0].is_contiguous(memory_format=torch.channels_last)
            close(blended, passes_reference.blend(y1, y2, *a, residual, relu), dtype)
        for want, more in ((False, None), (True, small(n, c))):
            sums = passes_cpu.sums(dout, more, kept, y1, y2, m1, m2)
            close(sums, passes_reference.sums(dout, more, kept, y1, y2, m1, m2), dtype)
            given = (dout, more, kept, y1, y2, m1, m2, p1, q1, r1, p2, q2, r2)
            ours = passes_cpu.spread(*given, want_residual=want)
            close(ours, passes_reference.spread(*given, want_residual=want), dtype)
            dy, dz = passes_cpu.spread(*given, want_residual=want, stacked=True)
            close((*dy.chunk(2, 1), dz), ours, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(3, 37), (1, 1), (16, 520)])
@pytest.mark.parametrize(("batch", "chosen"), [(True, False), (False, True), (True, True)])
def test_what_stands_between_the_passes(
    shape: tuple[int, int], dtype: torch.dtype, batch: bool, chosen: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    images, channels = shape

    def small(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)

    gates = (small(images, channels) > 0).to(dtype)
    norms = [
        Norm(small(channels), small(channels), small(channels), small(channels).abs(), 1e-5, batch),
        Norm(None, None, small(channels), small(channels).abs(), 1e-3, not batch),
    ]
    found = passes_cpu.coefficients(gates, *norms)
    close(found, passes_reference.coefficients(gates, *norms), dtype)
    affine = [
        Affine(
            *(small(channels), small(channels), rstd, norm.batch),
            total=small(channels).abs() + 1 if chosen else None,
        )
        for rstd, norm in zip(found[3:], norms, strict=True)
    ]
    sums = [small(images, channels) for _ in range(3)]
    ours = passes_cpu.gradients(gates, *sums, *affine, 70)
    theirs = passes_reference.gradients(gates, *sums, *affine, 70)
    for name in (field.name for field in fields(Gradients)):
        close(getattr(ours, name), getattr(theirs, name), dtype)
    fixed = ours.second if batch else ours.first
    assert not fixed[1].any() and not fixed[2].any() and bool(fixed[0].any() or images == 1)


def test_branches_that_are_the_same_give_gates_no_gradient() -> None:
    """Exactly none: straight after conversion nothing is to be preferred."""
    draw = torch.Generator().manual_seed(0)
    gates, s0, s1 = (torch.randn(5, 77, generator=draw) for _ in range(3))
    weight, bias, rstd = (torch.randn(77, generator=draw) for _ in range(3))
    one = Affine(weight, bias, rstd, batch=True)
    assert not passes_cpu.gradients(gates, s0, s1, s1, one, one, 500).gates.any()


def test_variance_far_from_zero_keeps_its_digits() -> None:
    y = torch.randn(8, 3, 30, 30, generator=torch.Generator().manual_seed(0)) + 1000
    _, var = passes_cpu.moments(y)
    torch.testing.assert_close(
        var.double(), y.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0
    )


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    y1, y2 = activations((2, 300, 13, 11), torch.float32, "last")
    mean = torch.zeros(300)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            each = mean.expand(2, 300)
            blended = passes_cpu.blend(y1, y2, each + 1, each + 2, each)
            sums = passes_cpu.sums(y1, each, y2, y1, y2, mean, mean)
            results.append((*passes_cpu.moments(y1), *blended, *sums))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_takes_what_it_was_compiled_for() -> None:
    assert passes_cpu.available(torch.zeros(1))
    assert not passes_cpu.available(torch.zeros(1, dtype=torch.float16))
    assert not passes_cpu.available(torch.zeros(1, device="meta"))
