"""All that follows a gated layer's convolutions, in Triton: against the reference passes."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating import gated_conv, step_statistics
from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from adafilter_dist.models.ops import device_kind, passes, passes_reference
from adafilter_dist.models.ops.gated_norm import gated_norm
from adafilter_dist.models.ops.norm import Choosers, Norm
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import images, pairs
from tests.models.ops.conftest import Run
from tests.models.ops.worker import Worker

# The interpreter takes its time.
pytestmark = pytest.mark.slow

EPS = (1e-5, 1e-3)
KINDS = [(1, 1), (0, 0), (1, 2), (2, 0), (2, 2)]
# Images, channels, height, width and micro-batches.
CASES = [
    (3, 5, 4, 3, 1),
    (4, 17, 3, 5, 2),
    (6, 3, 1, 1, 3),
    (2, 70, 5, 2, 1),
    (2, 9, 21, 30, 2),
    (1, 1, 1, 1, 1),
]


def tensors(
    device: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fractions: bool,
    layout: torch.memory_format = torch.channels_last,
) -> dict[str, Tensor]:
    images, channels, height, width = shape
    draw = torch.Generator().manual_seed(sum(shape))

    def of(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device, dtype)

    def pixels() -> Tensor:
        return of(images, channels, height, width).contiguous(memory_format=layout)

    gates = of(images, channels).sigmoid() if fractions else (of(images, channels) > 0).to(dtype)
    small = {name: of(channels) for name in ("w1", "b1", "w2", "b2", "m1", "m2")}
    spread = {name: of(channels).abs() + 0.5 for name in ("v1", "v2")}
    return {"y1": pixels() + 1, "y2": pixels(), "gates": gates, "residual": pixels()} | (
        small | spread | {"dout": pixels(), "dmean": of(images, channels)}
    )


def leaves(of: dict[str, Tensor], residual: bool) -> list[Tensor]:
    names = ("y1", "y2", "gates", "w1", "b1", "w2", "b2", *["residual"] * residual)
    return [of[name].detach().requires_grad_() for name in names]


def expected(
    of: dict[str, Tensor], kinds: tuple[int, int], groups: int, relu: bool, residual: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Output, mean and gradients by the reference passes, group by group; both branches' sums."""
    y1, y2, gates, w1, b1, w2, b2, *more = given = leaves(of, residual)
    channels = gates.shape[1]
    sums = [torch.zeros((3 if kind == 1 else 2) * channels + 1).to(w1) for kind in kinds]
    made = []
    split = [each.chunk(groups) for each in (y1, y2, gates, *more)]
    for own1, own2, bits, *rest in zip(*split, strict=True):
        norms = []
        for number, y in enumerate((own1, own2)):
            weight, bias = ((w1, b1), (w2, b2))[number]
            mean, var = of[f"m{number + 1}"], of[f"v{number + 1}"]
            if kinds[number] == 2:
                norms.append(Norm(weight, bias, mean, var, EPS[number], batch=False))
                continue
            total = None
            if kinds[number] == 1:
                choosers = Choosers(bits.detach(), number == 0, mean, var, 1.0)
                moments = passes_reference.chosen_moments(y.detach(), choosers)
                mean, var, total = moments.taken
                sums[number][:-1] += moments.sums.flatten()
            else:
                mean, var = passes_reference.moments(y.detach())
                count = y.numel() // channels
                sums[number][:channels] += mean
                sums[number][channels:-1] += var * (count / max(count - 1, 1))
            sums[number][-1] += 1
            norms.append(Norm(weight, bias, mean, var, EPS[number], batch=True, total=total))
        third = rest[0] if residual else None
        made.append(gated_norm(passes_reference, own1, own2, bits, *norms, third, relu))
    out, mean = (torch.cat(each) for each in zip(*made, strict=True))
    return [out, mean, *torch.autograd.grad((out, mean), given, (of["dout"], of["dmean"]))], sums


def found(
    of: dict[str, Tensor],
    kinds: tuple[int, int],
    groups: int,
    relu: bool,
    residual: bool,
    stacked: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    from adafilter_dist.models.ops import layer_triton

    y1, y2, gates, w1, b1, w2, b2, *more = given = leaves(of, residual)
    channels = gates.shape[1]
    sums = [torch.zeros((3 if kind == 1 else 2) * channels + 1).to(w1) for kind in kinds]
    norms = [
        layer_triton.BranchNorm(kind, *pair, of[f"m{n + 1}"], of[f"v{n + 1}"], sums[n], EPS[n])
        for n, (kind, pair) in enumerate(zip(kinds, ((w1, b1), (w2, b2)), strict=True))
    ]
    both: Any = (y1, y2)
    if stacked:
        whole = torch.cat((y1, y2), 1).contiguous(memory_format=torch.channels_last)
        both = (whole, None)
    third = more[0] if residual else None
    out, mean = layer_triton.gated_layer(*both, gates, *norms, groups, 1.0, third, relu)
    return [out, mean, *torch.autograd.grad((out, mean), given, (of["dout"], of["dmean"]))], sums


# Relative and absolute: activations in half precision are one rounding away, sums are float32's.
WITHIN = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (2e-3, 2e-3),
    torch.bfloat16: (2.0**-7, 2e-2),
    torch.float16: (2.0**-10, 4e-3),
}
LARGE = ("y1", "y2", "residual", "dout")


def check_layer(device: str, number: int, kinds: tuple[int, int], dtype: torch.dtype) -> None:
    *shape, groups = CASES[number]
    relu, residual, stacked = number % 2 == 0, number % 3 == 0, number % 4 < 2
    # A layout that is no row of channels a pixel is copied first.
    layout = torch.contiguous_format if number == 2 else torch.channels_last
    of = tensors(device, tuple(shape), torch.float32, number == 1, layout)
    if dtype == torch.float64:
        of = {name: each.double() for name, each in of.items()}
    else:
        of |= {name: of[name].to(dtype) for name in LARGE}
    how = (kinds, groups, relu, residual)
    ours, own = found(of, *how, stacked)
    theirs, wanted = expected({name: each.double() for name, each in of.items()}, *how)
    rtol, atol = WITHIN[dtype]
    names = ("out", "mean", "y1", "y2", "gates", "w1", "b1", "w2", "b2", "residual")
    for name, one, other in zip(names, ours, theirs, strict=False):
        torch.testing.assert_close(
            *(one.double(), other),
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=max(rtol, 1e-9), atol=atol)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_a_layer_is_the_reference_s_group_by_group(run: Run, kinds: tuple[int, int]) -> None:
    for number in range(len(CASES)) if kinds == (1, 1) else (0, 1, 2):
        run(check_layer, number, kinds, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_less_precision(run: Run, dtype: torch.dtype) -> None:
    # Without ReLU: a value within rounding of zero may be on either side of it.
    for number in (1, 3):
        run(check_layer, number, (1, 1), dtype)


def check_gradients(device: str, kinds: tuple[int, int]) -> None:
    """Against differences, where all inputs may differ: not through the chosen statistics."""
    from adafilter_dist.models.ops import layer_triton

    of = tensors(device, (2, 2, 2, 1), torch.float64, fractions=True)
    given = leaves(of, residual=True)

    def layer(*given: Tensor) -> tuple[Tensor, Tensor]:
        y1, y2, gates, w1, b1, w2, b2, residual = given
        norms = [
            layer_triton.BranchNorm(
                *(
                    kind,
                    *pair,
                    of[f"m{n + 1}"],
                    of[f"v{n + 1}"],
                    torch.zeros_like(w1.repeat(4)),
                    0.1,
                )
            )
            for n, (kind, pair) in enumerate(zip(kinds, ((w1, b1), (w2, b2)), strict=True))
        ]
        out: tuple[Tensor, Tensor] = layer_triton.gated_layer(
            *(y1, y2, gates, *norms, 1, 1.0, residual, False)
        )
        return out

    assert torch.autograd.gradcheck(layer, given, fast_mode=True)


@pytest.mark.parametrize("kinds", [(0, 2), (2, 0)], ids=str)
def test_gradients_are_those_of_differences(run: Run, kinds: tuple[int, int]) -> None:
    run(check_gradients, kinds)


def check_switched_off(device: str, bad: float) -> None:
    """What a gate switches off must not send its infinities; what it switches on is seen."""
    of = tensors(device, (2, 17, 4, 3), torch.float32, fractions=False)
    of["gates"], of["w2"] = torch.ones_like(of["gates"]), of["w2"].abs()
    wanted = found(of, (2, 2), 1, True, False, False)[0][0]
    of["y2"] = torch.full_like(of["y2"], bad)
    assert torch.equal(found(of, (2, 2), 1, True, False, False)[0][0], wanted)
    of["gates"][0, 0] = 0.5
    on = found(of, (2, 2), 1, True, False, False)[0][0]
    assert not on[0, 0].isfinite().any() and on[0, 1:].isfinite().all()


def test_a_branch_that_is_off_leaves_its_infinities_out(run: Run) -> None:
    for bad in (float("inf"), float("nan")):
        run(check_switched_off, bad)


def check_bits(device: str) -> None:
    of = tensors(device, (1, 64, 21, 26), torch.float32, fractions=False)
    once, again = (found(of, (1, 0), 1, True, True, True) for _ in range(2))
    for one, other in zip([*once[0], *once[1]], [*again[0], *again[1]], strict=True):
        assert torch.equal(one, other)


def test_the_same_bits_twice(run: Run) -> None:
    run(check_bits)


def check_groups(device: str) -> None:
    """Micro-batches of one forward have the bits of forwards of their own."""
    of = tensors(device, (4, 9, 5, 4), torch.float32, fractions=False)
    whole, sums = found(of, (1, 1), 2, True, True, True)
    parts = [
        {name: each[part] if len(each) == 4 else each for name, each in of.items()}
        for part in (slice(2), slice(2, 4))
    ]
    apart = [found(part, (1, 1), 1, True, True, True) for part in parts]
    for place in (0, 1, 2, 3, 4, 9):
        joined = torch.cat([results[place] for results, _ in apart])
        assert torch.equal(whole[place], joined), place
    for own, one, other in zip(sums, apart[0][1], apart[1][1], strict=True):
        assert torch.equal(own, one + other)


def test_micro_batches_have_the_bits_of_forwards_of_their_own(run: Run) -> None:
    run(check_groups)


def check_operators(device: str) -> None:
    from adafilter_dist.models.ops import layer_operators

    operators = torch.ops.adafilter
    of = tensors(device, (4, 5, 4, 3), torch.float32, fractions=False)
    both = torch.cat((of["y1"], of["y2"]), 1).contiguous(memory_format=torch.channels_last)
    norms = [of[name] for name in ("w1", "b1", "m1", "v1", "w2", "b2", "m2", "v2")]
    affine = [of[name] for name in ("w1", "b1", "w2", "b2")]
    sums = [torch.zeros(16, device=device) for _ in range(2)]
    how = ([1, 1], [1e-5, 1e-5], 2, 1.0)
    rows = layer_operators.statistics(both, None, of["gates"], norms, *sums, *how)
    apart = (of["y1"], of["y2"])
    calls: list[Any] = [
        (operators.layer_statistics.default, (both, None, of["gates"], norms, *sums, *how)),
        (operators.choose.default, (both, None, of["gates"], rows, None, 2, True)),
        (operators.choose.default, (*apart, of["gates"], rows, of["residual"], 2, False)),
        (
            operators.layer_gradients.default,
            *[(of["dout"], of["dmean"], of["residual"], both, None, of["gates"], affine, rows)],
        ),
        (
            operators.layer_gradients.default,
            *[(of["dout"], None, None, *apart, of["gates"], affine, rows)],
        ),
    ]
    for number, (operator, arguments) in enumerate(calls):
        more = ([1, 1], 2, number == 3) if number >= 3 else ()
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(operator, (*arguments, *more), test_utils=tests)


def test_operators_keep_what_they_promise_to_torch_compile(run: Run) -> None:
    run(check_operators)


def check_cubins(capability: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from tests.models.ops.compile_only import compiled

    of = tensors("cpu", shape, torch.float32, fractions=False)
    if dtype == torch.float64:
        of = {name: each.double() for name, each in of.items()}
    of |= {name: of[name].to(dtype) for name in LARGE}
    with compiled(capability) as kernels:
        found(of, (1, 1), len(of["gates"]), True, True, True)
        found(of, (0, 2), 1, False, False, False)
    assert len(kernels) == 2 * 6 + 1
    for kernel in kernels:
        assert kernel.asm["cubin"], kernel.name
        passes = ("moments", "choose", "sums", "spread")
        if shape[1] == 64 and kernel.name.removesuffix("_kernel") in passes:
            assert "ld.global.v" in kernel.asm["ptx"], kernel.name  # whole vectors


@pytest.mark.parametrize(
    ("capability", "shape", "dtype"),
    [
        (90, (4, 64, 56, 56), torch.bfloat16),
        (90, (1, 1, 1, 1), torch.float32),
        (80, (4, 64, 14, 14), torch.float16),
        (80, (3, 130, 7, 7), torch.float64),
    ],
    ids=str,
)
def test_they_compile_for_nvidia_s_gpus_without_one(
    compiler: Worker, capability: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    compiler.run(check_cubins, capability, shape, dtype)


def steps_of(micro: int, kind: str, reference: bool, **gate: Any) -> list[Tensor]:
    """Losses, gradients and statistics of two steps with `micro` micro-batches each.

    From the second on, the filters of all layers are stacked together.
    """
    settings = Gate(**{"decision": "filter"} | gate)
    net = convert(pairs().double(), size=12, gate=settings, batchnorm=kind)  # type: ignore[arg-type]
    if reference:
        set_kernels(net, "reference")
    with torch.no_grad():
        for layer in net.gated_layers.values():
            layer.bn1.bias += torch.linspace(-0.3, 0.3, len(layer.bn1.bias)).to(layer.bn1.bias)
    net.train()
    found: list[Tensor] = []
    for _ in range(2):
        net.zero_grad()
        with in_micro_batches(micro):
            loss = net(images(2 * micro, 12).double()).square().mean()
        loss.backward()
        trained = {name: each for name, each in net.named_parameters() if each.requires_grad}
        gradients = [each.grad for each in trained.values() if each.grad is not None]
        assert len(gradients) == len(trained)
        found += [loss.detach(), *gradients, step_statistics.collect(net)]
        step_statistics.update_statistics(net)
        with torch.no_grad():
            for each in trained.values():
                each -= 0.1 * each.grad
    return found


def check_network(device: str, micro: int, kind: str) -> None:
    wanted = steps_of(micro, kind, reference=True)
    with (
        patch.object(device_kind, "on_gpu", lambda x: True),
        patch.object(torch, "_foreach_copy_", wraps=torch._foreach_copy_) as copies,
    ):
        ours = steps_of(micro, kind, reference=False)
    assert any(len(call.args[0]) == 4 for call in copies.call_args_list)  # of two layers
    for number, (one, other) in enumerate(zip(ours, wanted, strict=True)):
        torch.testing.assert_close(
            one, other, rtol=1e-7, atol=1e-8, msg=lambda text, n=number: f"{n}: {text}"
        )


@pytest.mark.parametrize(("micro", "kind"), [(1, "selected"), (3, "selected"), (2, "all")])
def test_a_network_by_a_gpu_s_code_path(interpreter: Worker, micro: int, kind: str) -> None:
    interpreter.run(check_network, "cpu", micro, kind)


def check_one_node(device: str, estimator: str) -> None:
    """A layer that is one node of autograd's graph has the bits of three nodes."""
    from adafilter_dist.models.ops import layer_node

    results = []
    with patch.object(device_kind, "on_gpu", lambda x: True):
        for pick in (passes.layer_node, lambda x: None):
            with (
                patch.object(gated_conv, "layer_node", pick),
                patch.object(layer_node, "gated_layer", wraps=layer_node.gated_layer) as node,
            ):
                torch.manual_seed(0)
                results.append(steps_of(2, "selected", reference=False, estimator=estimator))
            # From the second layer of the second step on: then the gate knows the filters.
            assert (node.call_count > 0) == (pick is passes.layer_node)
    for number, (one, other) in enumerate(zip(*results, strict=True)):
        assert torch.equal(one, other), number


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
def test_a_layer_of_one_node_has_the_bits_of_three(interpreter: Worker, estimator: str) -> None:
    interpreter.run(check_one_node, "cpu", estimator)


def check_compiled(device: str) -> None:
    from adafilter_dist.models.ops import layer_triton

    of = tensors(device, (4, 5, 4, 3), torch.float32, fractions=False)
    y1, y2, gates, w1, b1, w2, b2, residual = given = leaves(of, True)

    def layer(sums1: Tensor, sums2: Tensor) -> tuple[Tensor, Tensor]:
        norms = [
            layer_triton.BranchNorm(1, *pair, of["m1"], of["v1"], sums, 1e-5)
            for pair, sums in (((w1, b1), sums1), ((w2, b2), sums2))
        ]
        both = torch.cat((y1, y2), 1)
        return layer_triton.gated_layer(both, None, gates, *norms, 2, 1.0, residual, True)

    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        sums = [torch.zeros(16, device=device) for _ in range(2)]
        out = function(*sums)
        gradients = torch.autograd.grad(out, given, (of["dout"], of["dmean"]))
        results.append([*out, *gradients, *sums])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) and bool(one.any())


def test_the_graph_of_a_layer_does_not_break(run: Run) -> None:
    run(check_compiled)
