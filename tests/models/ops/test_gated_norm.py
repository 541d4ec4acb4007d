from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.ops import passes_cpu, passes_reference
from adafilter_dist.models.ops.gated_norm import gated_norm
from adafilter_dist.models.ops.norm import Choosers, Norm

EPS = 1e-5
Given = dict[str, Tensor | None]
Ways = tuple[str, str]
"""Whose statistics each branch takes: all images', those that chose it, or fixed ones."""


def given(
    shape: tuple[int, int, int, int], gates: str = "random", layout: str = "last", seed: int = 0
) -> Given:
    draw = torch.Generator().manual_seed(seed)
    images, channels = shape[:2]

    def of(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    def activations() -> Tensor:
        memory = torch.channels_last if layout == "last" else torch.contiguous_format
        return (of(*shape) + 3).contiguous(memory_format=memory).requires_grad_()

    bits = {
        "random": (of(images, channels) > 0).double(),
        "ones": torch.ones(images, channels, dtype=torch.float64),
        "zeros": torch.zeros(images, channels, dtype=torch.float64),
        "fractions": torch.rand(images, channels, generator=draw, dtype=torch.float64),
    }[gates]
    small = {name: of(channels).requires_grad_() for name in ("w1", "b1", "w2", "b2")}
    tensors = {"y1": activations(), "y2": activations(), "gates": bits.requires_grad_()}
    return {**tensors, **small, "residual": activations()}


def running(number: int, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the branch from before."""
    mean = torch.linspace(1, 2 + number, channels, dtype=torch.float64)
    return mean, torch.linspace(0.5, 2.5 - number / 2, channels, dtype=torch.float64)


def fused(
    passes: Any,
    of: Given,
    relu: bool,
    ways: Ways = ("all", "all"),
    chosen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`chosen` are the gates that the statistics go by, where they are not the layer's."""
    y1, y2, gates = of["y1"], of["y2"], of["gates"]
    assert y1 is not None and gates is not None
    bits = gates.detach() if chosen is None else chosen

    def norm(number: int) -> Norm:
        y, weight, bias = of[f"y{number}"], of[f"w{number}"], of[f"b{number}"]
        assert y is not None
        mean, var = running(number, y.shape[1])
        if ways[number - 1] == "fixed":
            return Norm(weight, bias, mean, var, EPS, batch=False)
        if ways[number - 1] == "all":
            mean, var = passes.moments(y.detach())
            return Norm(weight, bias, mean, var, EPS, batch=True)
        choosers = Choosers(bits, number == 1, mean, var, 1.0)
        mean, var, total = passes.chosen_moments(y.detach(), choosers).taken
        return Norm(weight, bias, mean, var, EPS, batch=True, total=total)

    return gated_norm(passes, y1, y2, gates, norm(1), norm(2), of["residual"], relu)


def plain(of: Given, relu: bool, ways: Ways = ("all", "all")) -> tuple[Tensor, Tensor]:
    gates = of["gates"]
    assert gates is not None

    def branch(number: int) -> Tensor:
        y, weight, bias = of[f"y{number}"], of[f"w{number}"], of[f"b{number}"]
        assert y is not None and gates is not None
        mean, var = running(number, y.shape[1])
        way = ways[number - 1]
        if way == "selected":
            chose = gates.detach() if number == 1 else 1 - gates.detach()
            return by_choosers(y, chose, mean, var, weight, bias)
        return F.batch_norm(y, mean, var, weight, bias, way == "all", 0.1, EPS)

    g = gates[:, :, None, None]
    out = g * branch(1) + (1 - g) * branch(2)
    if of["residual"] is not None:
        out = out + of["residual"]
    out = out.relu() if relu else out
    return out, out.mean((2, 3))


def by_choosers(
    y: Tensor, chose: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The definition as it stands: sums over the images, and one image's worth of what was."""
    total = chose.sum(0)
    k = 1 - total / len(y)
    m, q = y.mean((2, 3)), y.square().mean((2, 3))
    taken = ((chose * m).sum(0) + k * mean) / (total + k)
    square = ((chose * q).sum(0) + k * (var + mean.square())) / (total + k)
    z = (y - taken[:, None, None]) / (square - taken.square() + EPS).sqrt()[:, None, None]
    assert weight is not None and bias is not None
    return z * weight[:, None, None] + bias[:, None, None]


def with_gradients(
    results: tuple[Tensor, Tensor], of: Given, used: tuple[bool, bool] = (True, True)
) -> list[Tensor]:
    """Results, and the gradients of a sum over those of them that are `used`."""
    leaves = [leaf for leaf in of.values() if leaf is not None]
    loss = torch.zeros((), dtype=torch.float64)
    for result, counts in zip(results, used, strict=True):
        weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
        loss = loss + (result * weight).sum() if counts else loss
    return [each.detach() for each in results] + list(torch.autograd.grad(loss, leaves))


def compare(
    passes: Any,
    of: Given,
    relu: bool,
    ways: Ways = ("all", "all"),
    used: tuple[bool, bool] = (True, True),
) -> None:
    ours = with_gradients(fused(passes, of, relu, ways), of, used)
    theirs = with_gradients(plain(of, relu, ways), of, used)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.fixture(params=["reference", "native"])
def passes(request: pytest.FixtureRequest) -> Any:
    if request.param == "reference":
        return passes_reference
    assert passes_cpu.available(torch.zeros(1)), "no C++ compiler (Debian: apt install g++)"
    return passes_cpu


SHAPES = [(2, 3, 5, 4), (3, 17, 1, 1), (1, 65, 7, 3), (4, 300, 9, 9), (2, 1, 11, 13)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_equals_two_batchnorms_and_a_choice(
    passes: Any, shape: tuple[int, int, int, int], relu: bool
) -> None:
    for seed, layout in enumerate(("last", "first")):
        compare(passes, given(shape, layout=layout, seed=seed), relu)


@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_the_output_or_its_mean_may_be_unused(passes: Any, used: tuple[bool, bool]) -> None:
    for relu in (False, True):
        compare(passes, given((3, 5, 4, 3)), relu, used=used)


@pytest.mark.parametrize("gates", ["ones", "zeros", "fractions"])
@pytest.mark.parametrize("ways", [("all", "all"), ("selected", "selected")])
def test_all_of_one_branch_and_fractions(passes: Any, gates: str, ways: Ways) -> None:
    compare(passes, given((3, 5, 4, 3), gates), True, ways)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_of_the_images_that_chose_the_filter(
    passes: Any, shape: tuple[int, int, int, int]
) -> None:
    for seed, layout in enumerate(("last", "first")):
        of = given(shape, layout=layout, seed=seed)
        compare(passes, of, bool(seed), ("selected", "selected"))


@pytest.mark.parametrize(
    "ways", [("fixed", "all"), ("all", "fixed"), ("fixed", "fixed"), ("selected", "fixed")]
)
def test_fixed_statistics(passes: Any, ways: Ways) -> None:
    compare(passes, given((2, 6, 3, 5)), True, ways)


def test_without_a_residual(passes: Any) -> None:
    of = given((2, 6, 3, 5))
    of["residual"] = None
    compare(passes, of, False)


def test_stacked_branches(passes: Any) -> None:
    of = given((2, 6, 3, 5))
    expected = with_gradients(plain(of, True), of)
    y1, y2 = of["y1"], of["y2"]
    assert y1 is not None and y2 is not None
    both = torch.cat((y1, y2), 1).detach().contiguous(memory_format=torch.channels_last)
    both.requires_grad_()
    norms = []
    for number, y in enumerate(both.detach().chunk(2, 1), start=1):
        mean, var = passes.moments(y)
        norms.append(Norm(of[f"w{number}"], of[f"b{number}"], mean, var, EPS, batch=True))
    gates = of["gates"]
    assert gates is not None
    out = gated_norm(passes, both, None, gates, norms[0], norms[1], of["residual"], True)
    leaves: Given = {"both": both, **{name: of[name] for name in list(of)[2:]}}
    ours = with_gradients(out, leaves)
    joined = [*expected[:2], torch.cat(expected[2:4], 1), *expected[4:]]
    for one, other in zip(ours, joined, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("ways", [("all", "all"), ("selected", "selected")])
def test_gradcheck(passes: Any, ways: Ways) -> None:
    of = given((3, 3, 2, 3), "fractions")
    names, chosen = list(of), of["gates"]
    assert chosen is not None
    chosen = chosen.detach().clone()

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        # Who counts in the statistics stays: no gradient of the gates runs through these.
        return fused(passes, dict(zip(names, leaves, strict=True)), True, ways, chosen)

    assert torch.autograd.gradcheck(function, tuple(of.values()), atol=1e-6)


def test_a_branch_that_is_not_finite_stays_out_where_it_is_not_chosen(passes: Any) -> None:
    of = given((2, 3, 4, 4), "ones")
    good, mean = (each.detach() for each in fused(passes, of, True, ("fixed", "fixed")))
    y2 = of["y2"]
    assert y2 is not None
    with torch.no_grad():
        y2.fill_(float("inf"))
    again, mean_again = fused(passes, of, True, ("fixed", "fixed"))
    assert torch.equal(again.detach(), good) and torch.equal(mean_again.detach(), mean)


def test_a_network_in_half_precision_with_fixed_statistics(passes: Any) -> None:
    """Its running statistics are bfloat16 too; coefficients are float32 all the same."""
    bn1, bn2 = (MicroBatchNorm2d(40, dtype=torch.bfloat16) for _ in range(2))
    bn2.frozen = True
    y1, y2 = (
        torch.randn(3, 40, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    y1.requires_grad_(), y2.requires_grad_()
    gates = (torch.randn(3, 40) > 0).bfloat16().requires_grad_()
    norms = bn1.norm_of(y1, passes, gates), bn2.norm_of(y2, passes, gates)
    out, mean = gated_norm(passes, y1, y2, gates, *norms)
    # Of what is stored, not of what was rounded.
    torch.testing.assert_close(mean, out.detach().float().mean((2, 3)), rtol=1e-5, atol=1e-6)
    out.float().square().sum().backward()
    g = gates.detach().float()[:, :, None, None]
    wanted = g * F.batch_norm(y1.detach().float(), None, None, training=True)
    wanted += (1 - g) * y2.detach().float()
    torch.testing.assert_close(out.detach().float(), wanted, rtol=2e-2, atol=2e-2)
    for leaf in (y1, y2, gates, bn1.weight, bn2.bias):
        assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
    torch.testing.assert_close(y2.grad, 2 * (1 - g).bfloat16() * out.detach(), rtol=2e-2, atol=2e-2)


def test_keeps_no_more_for_backward_than_the_convolutions_outputs_and_its_own(passes: Any) -> None:
    of = given((2, 6, 8, 8))
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out, _ = fused(passes, of, relu=True)
    large = [size for size in kept.values() if size >= out.untyped_storage().nbytes()]
    assert len(large) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("used", "way"),
    [((True, True), "selected"), ((True, False), "all"), ((False, True), "selected")],
)
def test_its_graph_does_not_break_when_compiled(used: tuple[bool, bool], way: str) -> None:
    """As on a GPU, where the passes are operators; here they are the reference's.

    Compiled by torch 2.11, what a `to` without effect gave in an autograd.Function has no gradient.
    """
    of = given((2, 3, 4, 4))

    def layer(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return fused(passes_reference, dict(zip(of, leaves, strict=True)), True, (way, way))

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    leaves = [leaf for leaf in of.values() if leaf is not None]
    ours = with_gradients(compiled(*leaves), of, used)
    for one, other in zip(ours, with_gradients(layer(*leaves), of, used), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert one.any()
