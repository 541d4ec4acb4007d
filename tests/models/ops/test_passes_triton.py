"""The Triton kernels of the four passes against their reference in float64, and their operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.ops import passes_reference
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.norm import Choosers
from tests.models.ops.conftest import Run
from tests.models.ops.layers import NAMES, by_autograd, by_passes, random_layer
from tests.models.ops.worker import Worker

# The interpreter takes its time.
pytestmark = pytest.mark.slow

Shape = tuple[int, int, int, int]
# Odd sizes, one image, one pixel, channels that no block divides.
SHAPES: list[Shape] = [
    (2, 3, 5, 7),
    (1, 17, 6, 5),
    (3, 64, 3, 3),
    (2, 130, 3, 2),
    (4, 1, 9, 5),
    (1, 1, 1, 1),
    (3, 17, 1, 1),
]
# Enough rows for several programs to share a sum.
LONG: list[Shape] = [(1, 64, 21, 26), (1, 1, 130, 127)]
# (relative, absolute): half precision is one rounding away from float64's result, no more.
WITHIN = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 2e-5),
    torch.bfloat16: (2.0**-7, 1e-4),
    torch.float16: (2.0**-10, 1e-4),
}


def random_rows(shape: Shape, dtype: torch.dtype, device: str, layout: str) -> list[Tensor]:
    """Two tensors of `shape`: halves of a stacked one, channels-last, or channel after channel."""
    torch.manual_seed(sum(shape))
    images, channels, height, width = shape
    both = torch.randn(images, 2 * channels, height, width, device=device).to(dtype) + 1
    halves = both.contiguous(memory_format=torch.channels_last).split(channels, 1)
    if layout == "stacked":
        return list(halves)
    if layout == "channels_last":
        return [half.contiguous(memory_format=torch.channels_last) for half in halves]
    return [half.contiguous() for half in halves]


def small(device: str, dtype: torch.dtype, *size: int) -> Tensor:
    """Coefficients, some of them exactly 0 and 1, as gates make them, and not side by side."""
    wide = accumulation_dtype(dtype)
    value = torch.randn(*size, 2, device=device, dtype=wide)
    return value.where(torch.rand_like(value) > 0.3, (value > 0).to(wide))[..., 0]


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """`found`, computed from activations of `dtype`, is the float64 `expected`."""
    rtol, atol = WITHIN[dtype if found.dtype == dtype else torch.float32]
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


def channels_last(y: Tensor) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last)


def check_moments(
    device: str, shape: Shape, dtype: torch.dtype, layout: str, offset: float
) -> None:
    from adafilter_dist.models.ops import passes_triton

    y = (random_rows(shape, torch.float32, device, layout)[1] + offset).to(dtype)
    mean, var = passes_triton.moments(y)
    expected_mean, expected_var = passes_reference.moments(y.double())
    same(mean, expected_mean, dtype)
    rtol = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(var.double(), expected_var, rtol=rtol, atol=1e-9)


def check_blend(
    device: str, shape: Shape, dtype: torch.dtype, layout: str, residual: bool, relu: bool
) -> None:
    from adafilter_dist.models.ops import passes_triton

    y1, y2 = random_rows(shape, dtype, device, layout)
    a1, a2, b = (small(device, dtype, *shape[:2]) for _ in range(3))
    third = random_rows(shape, dtype, device, layout)[1] if residual else None
    out, mean = passes_triton.blend(y1, y2, a1, a2, b, third, relu)
    assert out.dtype == dtype and channels_last(out)
    same(out, passes_reference.blend(*wide(y1, y2, a1, a2, b, third), relu)[0], dtype)
    # Of what is stored, not of what was rounded.
    assert mean.dtype == accumulation_dtype(dtype)
    rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (1e-5, 1e-5)
    torch.testing.assert_close(mean.double(), out.double().mean((2, 3)), rtol=rtol, atol=atol)


def check_sums(device: str, shape: Shape, dtype: torch.dtype, layout: str, relu: bool) -> None:
    from adafilter_dist.models.ops import passes_triton

    y1, y2 = random_rows(shape, dtype, device, layout)
    dout, out = random_rows(shape, dtype, device, layout)
    more = small(device, dtype, *shape[:2]) if relu else None
    given = (dout, more, (out - 1).relu() if relu else None, y1, y2)
    means = (small(device, dtype, shape[1]), small(device, dtype, shape[1]))
    found = passes_triton.sums(*given, *means)
    for one, other in zip(found, passes_reference.sums(*wide(*given, *means)), strict=True):
        assert one.dtype == accumulation_dtype(dtype)
        rtol, atol = (1e-12, 1e-10) if dtype == torch.float64 else (1e-5, 5e-4)
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=atol)


def check_spread(
    device: str, shape: Shape, dtype: torch.dtype, layout: str, relu: bool, residual: bool
) -> None:
    from adafilter_dist.models.ops import passes_triton

    y1, y2 = random_rows(shape, dtype, device, layout)
    dout, out = random_rows(shape, dtype, device, layout)
    more = small(device, dtype, *shape[:2]) if relu and not residual else None
    given = [dout, more, (out - 1).relu() if relu else None, y1, y2]
    by_image, by_channel = shape[:2], shape[1:2]
    sizes = [by_channel, by_channel, by_image, by_channel, by_channel, *[by_image] * 3]
    given += [small(device, dtype, *size) for size in sizes]
    *dys, dz = passes_triton.spread(*given, want_residual=residual)
    dy, dz_too = passes_triton.spread(*given, want_residual=residual, stacked=True)
    *expected, dz_expected = passes_reference.spread(*wide(*given), want_residual=True)
    for found, other in zip(dys, expected, strict=True):
        assert found.dtype == dtype and channels_last(found)
        same(found, other, dtype)
    assert channels_last(dy) and torch.equal(dy, torch.cat(dys, 1))
    if not residual:
        assert dz is None and dz_too is None
        return
    # Nothing is computed here, so not a bit may differ.
    assert torch.equal(dz.double(), dz_expected) and torch.equal(dz_too, dz)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_the_reference_s(run: Run, dtype: torch.dtype) -> None:
    for number, shape in enumerate(SHAPES + LONG):
        run(check_moments, shape, dtype, ("stacked", "channels_last", "planes")[number % 3], 0.0)


def test_moments_far_from_zero_keep_their_digits(run: Run) -> None:
    for shape in [(2, 3, 5, 7), (1, 17, 27, 29)]:
        run(check_moments, shape, torch.float32, "stacked", 1e4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, True)])
def test_blend_is_the_reference_s(run: Run, dtype: torch.dtype, relu: bool, residual: bool) -> None:
    for number, shape in enumerate(SHAPES):
        layout = ("stacked", "channels_last", "planes")[number % 3]
        run(check_blend, shape, dtype, layout, residual, relu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_sums_are_the_reference_s(run: Run, dtype: torch.dtype, relu: bool) -> None:
    for number, shape in enumerate(SHAPES + LONG):
        run(check_sums, shape, dtype, ("stacked", "channels_last", "planes")[number % 3], relu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, True), (True, False)])
def test_spread_is_the_reference_s(
    run: Run, dtype: torch.dtype, relu: bool, residual: bool
) -> None:
    for number, shape in enumerate(SHAPES):
        layout = ("stacked", "channels_last", "planes")[number % 3]
        run(check_spread, shape, dtype, layout, relu, residual)


def check_layer(device: str, gates: str, relu: bool, residual: bool, stacked: bool) -> None:
    from adafilter_dist.models.ops import passes_triton

    layer = random_layer((3, 5, 4, 7), residual=residual, relu=relu, gates=gates)
    dout, dmean = (torch.randn(*size, dtype=torch.float64) for size in ((3, 5, 4, 7), (3, 5)))
    expected, wanted = by_autograd(layer, dout, dmean)
    given = (passes_triton, layer.to(device), dout.to(device), dmean.to(device))
    out, gradients = by_passes(*given, stacked=stacked)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-10, atol=1e-10)
    for name, gradient, other in zip(NAMES, gradients, wanted, strict=False):
        torch.testing.assert_close(
            gradient.cpu(),
            other,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("gates", ["soft", "hard", "ones", "zeros"])
def test_a_layer_of_them_is_batchnorm_gates_and_relu(run: Run, gates: str) -> None:
    for relu, residual, stacked in [(True, True, True), (False, False, False), (True, False, True)]:
        run(check_layer, gates, relu, residual, stacked)


def check_switched_off(device: str, bad: float) -> None:
    from adafilter_dist.models.ops import passes_triton

    y1 = torch.randn(2, 17, 4, 3, device=device)
    y2 = torch.full_like(y1, bad)
    a, b = torch.rand(2, 17, device=device) + 0.1, torch.randn(2, 17, device=device)
    off = torch.zeros_like(a)
    expected = a[:, :, None, None] * y1 + b[:, :, None, None]
    torch.testing.assert_close(passes_triton.blend(y1, y2, a, off, b)[0], expected)
    found, _ = passes_triton.blend(y2, y1, off, a, b, None, True)
    torch.testing.assert_close(found, expected.relu())
    # Switched on, it must not be swallowed by the ReLU.
    on, _ = passes_triton.blend(y1, y2, a, a, b, None, True)
    assert not on.isfinite().any()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_coefficient_of_zero_leaves_infinity_and_nan_out(run: Run, bad: float) -> None:
    run(check_switched_off, bad)


def check_bits(device: str) -> None:
    from adafilter_dist.models.ops import passes_triton

    y1, y2 = random_rows((1, 64, 21, 26), torch.float32, device, "stacked")
    m = small(device, torch.float32, 64)
    k = m[None]

    def results() -> Tensor:
        sums = passes_triton.sums(y2, k, y1, y1, y2, m, m)
        mean = passes_triton.blend(y1, y2, k, k, k)[1]
        return torch.cat([*passes_triton.moments(y1), *sums[2], mean[0]])

    assert torch.equal(results(), results())


def test_sums_have_the_same_bits_twice(run: Run) -> None:
    run(check_bits)


def check_operators(device: str) -> None:
    from adafilter_dist.models.ops import passes_triton

    y1, y2 = random_rows((2, 5, 4, 3), torch.float32, device, "stacked")
    a, m = small(device, torch.float32, 2, 5), small(device, torch.float32, 5)
    coefficients = [m, m, a, m, m, a, m, m]
    calls = [
        (passes_triton._moments, (y1,)),
        (passes_triton._chosen_moments, (y1, a, m, m, False, 1.0)),
        (passes_triton._blend, (y1, y2, a, a, a, None, True)),
        (passes_triton._blend, (y1, y2, a, a, a, y2, False)),
        (passes_triton._sums, (y1, a, y2, y1, y2, m, m)),
        (passes_triton._sums, (y1, None, None, y1, y2, m, m)),
        (passes_triton._spread, (y1, a, y2, y1, y2, coefficients, True, True)),
        (passes_triton._spread, (y1, None, None, y1, y2, coefficients, False, False)),
    ]
    for operator, given in calls:
        # Shapes, dtypes and strides as promised to torch.compile; no input touched or returned.
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


def test_operators_keep_what_they_promise_to_torch_compile(run: Run) -> None:
    run(check_operators)


def check_compiled(device: str) -> None:
    from adafilter_dist.models.ops import passes_triton

    def layer(y1: Tensor, y2: Tensor, a: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        m1, v1 = passes_triton.moments(y1)
        m2 = passes_triton.chosen_moments(y2, Choosers(a, False, m1, v1, 1.0)).taken[0]
        out, mean = passes_triton.blend(y1, y2, a, 1 - a, a, y1, True)
        s0, s1, s2 = passes_triton.sums(dout, mean, out, y1, y2, m1, m2)
        dy, dz = passes_triton.spread(
            *(dout, mean, out, y1, y2, m1, m2, a, m1, m1, a, m2, m2),
            want_residual=True,
            stacked=True,
        )
        assert dz is not None
        return out, s0 + s1 + s2, dy, dz

    y1, y2 = random_rows((2, 5, 4, 3), torch.float32, device, "stacked")
    given = (y1, y2, small(device, torch.float32, 2, 5), y2.contiguous())
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*given), layer(*given))


def test_the_graph_of_a_layer_does_not_break(run: Run) -> None:
    run(check_compiled)


def check_cubins(capability: int, shape: Shape, dtype: torch.dtype) -> None:
    from adafilter_dist.models.ops import passes_triton
    from tests.models.ops.compile_only import compiled

    y1, y2 = random_rows(shape, dtype, "cpu", "stacked")
    a, m = torch.randn(shape[:2]), torch.randn(shape[1])
    choosers = [Choosers(a, tuned, m, m, 1.0) for tuned in (True, False)]
    with compiled(capability) as kernels:
        passes_triton.moments(y1)
        passes_triton.chosen_moments(y1, choosers[0])
        passes_triton.chosen_moments(y2, choosers[1])
        out, _ = passes_triton.blend(y1, y2, a, a, a, y1, True)
        passes_triton.sums(y1, a, out, y1, y2, m, m)
        passes_triton.spread(
            *(y1, a, out, y1, y2, m, m, a, m, m, a, m, m), want_residual=True, stacked=True
        )
    assert len(kernels) == 9
    for kernel in kernels:
        assert kernel.asm["cubin"], kernel.name
        if shape[1] == 64:  # what all are for: whole vectors
            assert "ld.global.v" in kernel.asm["ptx"], kernel.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "shape", "dtype"),
    [
        (90, (4, 64, 56, 56), torch.bfloat16),
        (90, (1, 1, 1, 1), torch.float32),
        (80, (3, 130, 7, 7), torch.float64),
    ],
)
def test_they_compile_for_nvidia_s_gpus_without_one(
    compiler: Worker, capability: int, shape: Shape, dtype: torch.dtype
) -> None:
    compiler.run(check_cubins, capability, shape, dtype)
