"""Moments over the images that chose a filter: each implementation against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.ops import passes_cpu, passes_reference
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.norm import Choosers, ChosenMoments
from tests.models.ops.conftest import Run

Shape = tuple[int, int, int, int]
# Two images, one, one pixel, several blocks of channels, several shares of an image.
SHAPES: list[Shape] = [(2, 3, 5, 7), (5, 70, 3, 3), (1, 17, 2, 2), (4, 5, 1, 1), (3, 5, 67, 65)]
GATES = ("bits", "fractions", "one", "nobody", "everybody")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-5}


def gates_of(kind: str, images: int, channels: int) -> Tensor:
    draw = torch.Generator().manual_seed(images)
    fractions = torch.rand(images, channels, generator=draw, dtype=torch.float64)
    if kind == "fractions":
        return fractions
    if kind == "bits":
        return (fractions > 0.5).double()
    gates = torch.full_like(fractions, float(kind == "everybody"))
    if kind == "one":
        gates[images // 2] = 1
    return gates


def given(
    shape: Shape, gates: str, dtype: torch.dtype, offset: float = 1.0, device: str = "cpu"
) -> tuple[Tensor, Choosers]:
    draw = torch.Generator().manual_seed(sum(shape))
    images, channels = shape[:2]
    both = torch.randn(images, 2 * channels, *shape[2:], generator=draw) + offset
    both *= 1 + torch.arange(images)[:, None, None, None] / 5  # images that differ
    y = both.contiguous(memory_format=torch.channels_last).to(dtype).split(channels, 1)[1]
    wide = accumulation_dtype(dtype)
    running = torch.randn(channels, generator=draw), torch.rand(channels, generator=draw) + 0.5
    mean, var = (each.to(device, wide) for each in running)
    chosen = gates_of(gates, images, channels).to(device, wide)
    return y.to(device), Choosers(chosen, True, mean, var, 1.0)


def other_side(choosers: Choosers) -> Choosers:
    """The same choice, as the branch of frozen filters is told it."""
    return Choosers(1 - choosers.gates, False, choosers.mean, choosers.var, choosers.prior)


def defined(y: Tensor, choosers: Choosers) -> tuple[Tensor, Tensor]:
    """Both results in float64, of the sums as they are written down."""
    y, weights = y.double(), choosers.gates.double()
    running_mean, running_var = choosers.mean.double(), choosers.var.double()
    m, q = y.mean((2, 3)), y.square().mean((2, 3))
    total = weights.sum(0)
    k = choosers.prior * (1 - total / len(y))
    mean = ((weights * m).sum(0) + k * running_mean) / (total + k)
    square = ((weights * q).sum(0) + k * (running_var + running_mean.square())) / (total + k)

    own = (weights * m).sum(0) / total.clamp(min=1e-300)
    spread = (weights * q).sum(0) / total.clamp(min=1e-300) - own.square()
    count = total * y.shape[2] * y.shape[3]
    unbiased = torch.where(count > 1, spread * count / (count - 1).clamp(min=1), running_var)
    share = total / len(y)
    taken = torch.stack((mean, square - mean.square(), total + k))
    return taken, torch.stack((share * own, share * unbiased, share))


class ByTriton:
    """`chosen_moments` by the operator that computes the statistics of both branches."""

    @staticmethod
    def chosen_moments(y: Tensor, choosers: Choosers) -> ChosenMoments:
        from adafilter_dist.models.ops import layer_operators

        channels = choosers.gates.shape[1]
        mean, var = choosers.mean, choosers.var
        norms = [torch.ones_like(mean), torch.zeros_like(mean), mean, var] * 2
        sums = [torch.zeros(3 * channels + 1).to(mean) for _ in range(2)]
        rows = layer_operators.statistics(
            *(y, y, choosers.gates, norms, *sums, [1, 1], [0.0, 0.0], 1, choosers.prior)
        )
        branch = 0 if choosers.tuned else 1
        of_mean, rstd, _, _, total = rows[5 * branch : 5 * branch + 5, 0]
        own = sums[branch]
        assert own[-1] == 1
        taken = torch.stack((of_mean, rstd.double().pow(-2).to(rstd), total))
        return ChosenMoments(taken, own[:-1].view(3, -1))


def check(device: str, shape: Shape, gates: str, dtype: torch.dtype, kind: str) -> None:
    passes: Any = {"cpu": passes_cpu, "reference": passes_reference, "triton": ByTriton}[kind]
    y, choosers = given(shape, gates, dtype, device=device)
    wanted = defined(y, choosers)
    tolerance = TOLERANCE[dtype]
    for side in (choosers, other_side(choosers)):
        found = passes.chosen_moments(y, side)
        for one, other in zip((found.taken, found.sums), wanted, strict=True):
            assert one.dtype == accumulation_dtype(dtype)
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    # To the bit: who is missing adds nothing, and where nobody chose nothing else counts.
    if gates == "nobody":
        assert torch.equal(found.taken[0], choosers.mean)
        if kind != "triton":  # which hands on 1 / standard deviation
            assert torch.equal(found.taken[1], choosers.var)
        assert not found.sums[[0, 2]].any()
    if gates == "everybody":
        assert torch.equal(found.taken[2], torch.full_like(choosers.mean, len(y)))
        assert torch.equal(found.taken[0], found.sums[0])


KINDS = ["reference", "cpu"]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_are_as_defined(kind: str, gates: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        check("cpu", shape, gates, dtype, kind)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_triton_s_are_as_defined(run: Run, dtype: torch.dtype) -> None:
    for shape, gates in zip(SHAPES, GATES, strict=True):
        run(check, shape, gates, dtype, "triton")
    run(check, SHAPES[-1], "bits", dtype, "triton")


def check_everybody(device: str, dtype: torch.dtype, kind: str) -> None:
    """Where all chose, the bits of the moments of all."""
    passes = passes_cpu if kind == "cpu" else passes_reference
    y, choosers = given((6, 70, 5, 9), "everybody", dtype, device=device)
    mean, var = passes.moments(y)
    found = passes.chosen_moments(y, choosers).taken
    assert torch.equal(found[0], mean) and torch.equal(found[1], var)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_have_the_bits_of_plain_moments_where_all_chose(dtype: torch.dtype) -> None:
    check_everybody("cpu", dtype, "cpu")


def check_far(device: str, kind: str) -> None:
    passes: Any = {"cpu": passes_cpu, "reference": passes_reference, "triton": ByTriton}[kind]
    y, choosers = given((6, 3, 30, 20), "bits", torch.float32, offset=1e4, device=device)
    # Images alike, so that only what is left after the mean is taken off counts.
    y = y / (1 + torch.arange(6, device=device)[:, None, None, None] / 5)
    near = Choosers(choosers.gates, True, choosers.mean + 1e4, choosers.var, 1.0)
    found = passes.chosen_moments(y, near)
    wanted = defined(y, near)[0]
    torch.testing.assert_close(found.taken.double(), wanted, rtol=2e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_zero_keep_their_digits(kind: str) -> None:
    check_far("cpu", kind)


@pytest.mark.slow
def test_triton_s_far_from_zero_keep_their_digits(run: Run) -> None:
    run(check_far, "triton")
