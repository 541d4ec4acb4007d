"""What stands between the passes, in Triton: against the reference, and its operators."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.ops import passes_reference
from adafilter_dist.models.ops.norm import Affine, Gradients, Norm
from tests.models.ops.conftest import Run
from tests.models.ops.worker import Worker

# The interpreter takes its time.
pytestmark = pytest.mark.slow

SHAPES = [(3, 37), (1, 1), (40, 130)]


def given(
    device: str, shape: tuple[int, int], dtype: torch.dtype, batch: bool
) -> tuple[Tensor, list[Norm], list[Tensor]]:
    """Gates, both BatchNorms (the second without an affine pair), and the three sums."""
    draw = torch.Generator().manual_seed(sum(shape))
    images, channels = shape

    def small(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device, dtype)

    norms = [
        Norm(small(channels), small(channels), small(channels), small(channels).abs(), 1e-5, batch),
        Norm(None, None, small(channels), small(channels).abs(), 1e-3, not batch),
    ]
    gates = small(2 * images, channels)[::2].gt(0).to(dtype)
    return gates, norms, [small(images, channels) for _ in range(3)]


def close(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-11 if expected.dtype == torch.float64 else 3e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def check_equal(
    device: str, shape: tuple[int, int], dtype: torch.dtype, batch: bool, chosen: bool
) -> None:
    from adafilter_dist.models.ops import passes_triton

    gates, norms, sums = given(device, shape, dtype, batch)
    found = passes_triton.coefficients(gates, norms[0], norms[1])
    for one, other in zip(found, passes_reference.coefficients(gates, *norms), strict=True):
        close(one, other)
    totals = [norm.var + 1 if chosen else None for norm in norms]
    affine = [
        Affine(norms[0].mean, norms[0].var, rstd, norm.batch, total)
        for rstd, norm, total in zip(found[3:], norms, totals, strict=True)
    ]
    ours = passes_triton.gradients(gates, *sums, affine[0], affine[1], 70)
    theirs = passes_reference.gradients(gates, *sums, *affine, 70)
    for name in (field.name for field in fields(Gradients)):
        one, other = getattr(ours, name), getattr(theirs, name)
        for a, b in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
            close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("batch", "chosen"), [(True, False), (False, True), (True, True)])
def test_they_are_the_reference_s(run: Run, dtype: torch.dtype, batch: bool, chosen: bool) -> None:
    for shape in SHAPES:
        run(check_equal, shape, dtype, batch, chosen)


def check_half(device: str) -> None:
    from adafilter_dist.models.ops import passes_triton

    gates, norms, _ = given(device, (3, 5), torch.float32, True)
    weight = norms[0].weight
    assert weight is not None
    rounded = replace(norms[0], weight=weight.bfloat16())
    found = passes_triton.coefficients(gates.bfloat16(), rounded, norms[1])
    exact = replace(norms[0], weight=weight.bfloat16().float())
    for one, other in zip(
        found, passes_reference.coefficients(gates, exact, norms[1]), strict=True
    ):
        assert one.dtype == torch.float32
        close(one, other)


def test_gates_and_weights_in_half_precision(run: Run) -> None:
    run(check_half)


def check_operators(device: str) -> None:
    from adafilter_dist.models.ops import coefficients_triton

    gates, norms, sums = given(device, (3, 5), torch.float32, True)
    first, second = ([*norm.affine(), norm.mean, norm.var] for norm in norms)
    calls = [
        (coefficients_triton._coefficients, (gates, first, second, 1e-5, 1e-3)),
        (
            coefficients_triton._gradients,
            ([gates, *sums, *first[:3], *second[:3]], None, second[3], 70, True, True),
        ),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_operators_keep_what_they_promise_to_torch_compile(run: Run) -> None:
    run(check_operators)


def check_cubins(capability: int, dtype: torch.dtype) -> None:
    from adafilter_dist.models.ops import passes_triton
    from tests.models.ops.compile_only import compiled

    gates, norms, sums = given("cpu", (64, 256), dtype, True)
    affine = [Affine(norm.mean, norm.mean, norm.var, norm.batch) for norm in norms]
    with compiled(capability) as kernels:
        passes_triton.coefficients(gates, *norms)
        passes_triton.gradients(gates, *sums, *affine, 64)
    assert len(kernels) == 2 and all(kernel.asm["cubin"] for kernel in kernels)


@pytest.mark.parametrize(("capability", "dtype"), [(90, torch.float32), (80, torch.float64)])
def test_they_compile_for_nvidia_s_gpus_without_one(
    compiler: Worker, capability: int, dtype: torch.dtype
) -> None:
    compiler.run(check_cubins, capability, dtype)
