"""A step of the gate as one operation: against autograd, and in Triton against plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.ops import gate_step_reference
from adafilter_dist.models.ops.gate_step_reference import Cell, Kept, Layer, Rule
from adafilter_dist.recipe.sections.model import Gate
from tests.models.ops.conftest import Run
from tests.models.ops.worker import Worker

# Two of a width, one alone, an odd one.
LAYERS = [("a", 3, 8), ("b", 8, 5), ("c", 8, 5), ("d", 5, 17)]


def gate(hidden: int = 16, **settings: Any) -> RecurrentGate:
    generator = torch.Generator().manual_seed(3)
    chosen = Gate(hidden=hidden, decision="filter", **settings)
    return RecurrentGate(LAYERS, chosen, generator=generator).double()


def walked(module: RecurrentGate, xs: list[Tensor], fused: bool) -> tuple[list[Tensor], Any]:
    """Gates and logits of all layers, and the gradients of inputs and weights."""
    if not fused:
        module._steps_are_fused = lambda: False  # type: ignore[method-assign]
    torch.manual_seed(1)
    module.start()
    gates = [module(index, x) for index, x in enumerate(xs)]
    logits = list(module.decisions.logits.values())
    module.stop()
    torch.manual_seed(2)
    loss = torch.stack([(each * torch.randn_like(each)).sum() for each in [*gates, *logits[:2]]])
    return gates + logits, torch.autograd.grad(loss.sum(), [*xs, *module.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"input_norm": "none"},
        {"recurrent": False},
        {"estimator": "identity", "temperature": 0.5},
        {"estimator": "gumbel", "temperature": 0.7},
    ],
    ids=str,
)
def test_a_step_is_that_of_the_modules(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    xs = [torch.randn(7, c, 4, 3, generator=generator).double() for _, c, _ in LAYERS]
    for x in xs:
        x.requires_grad_()
    ours, own = walked(gate(**settings), xs, fused=True)
    theirs, wanted = walked(gate(**settings), xs, fused=False)
    # The same operations forward: to the bit.
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_only_layers_that_have_a_gradient_give_their_weights_one() -> None:
    module = gate()
    xs = [torch.randn(3, c, 2, 2).double() for _, c, _ in LAYERS]
    module.start()
    gates = [module(index, x) for index, x in enumerate(xs)]
    module.stop()
    (gates[1] * torch.randn_like(gates[1])).sum().backward()
    given = {name for name, each in module.named_parameters() if each.grad is not None}
    layers = {name.split(".")[1] for name in given if not name.startswith("cell")}
    assert layers == {"0", "1"} and len([name for name in given if "cell" in name]) == 4


def test_frozen_weights_get_none() -> None:
    module = gate()
    module.outputs.requires_grad_(False)
    xs = [torch.randn(3, c, 2, 2).double() for _, c, _ in LAYERS]
    module.start()
    sum((module(index, x).sum() for index, x in enumerate(xs)), torch.zeros(())).backward()
    module.stop()
    assert all(each.grad is None for each in module.outputs.parameters())
    assert all(each.grad is not None for each in module.inputs.parameters())


def test_gradients_are_those_of_differences() -> None:
    """Of logits, which a threshold does not cut: by inputs and weights, through the state."""
    module = gate(hidden=4, temperature=0.7)
    xs = [torch.randn(2, c, 1, 1).double().requires_grad_() for _, c, _ in LAYERS]
    named = list(module.named_parameters())

    def logits(*given: Tensor) -> list[Tensor]:
        with _as_parameters(module, dict(zip((n for n, _ in named), given, strict=False))):
            module.start()
            for index, x in enumerate(given[len(named) :]):
                module(index, x)
            module.stop()
        return list(module.decisions.logits.values())

    given = [each.detach().clone().requires_grad_() for _, each in named]
    assert torch.autograd.gradcheck(logits, (*given, *xs), fast_mode=True)


@contextmanager
def _as_parameters(module: RecurrentGate, values: dict[str, Tensor]) -> Iterator[None]:
    with torch.nn.utils.stateless._reparametrize_module(module, values):
        yield


Given = tuple[Tensor, Layer, Cell, tuple[Tensor, Tensor] | None, Rule, Any, Tensor | None]


def case(device: str, shape: tuple[int, int, int, int], dtype: torch.dtype, number: int) -> Given:
    """A step of (images, inputs, hidden, outputs); `number` picks what is there and how."""
    images, inputs, hidden, outputs = shape
    draw = torch.Generator().manual_seed(sum(shape))

    def of(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device, dtype)

    layer = Layer(of(hidden, inputs), of(hidden), of(outputs, hidden), of(outputs))
    cell = Cell(of(4 * hidden, hidden), of(4 * hidden, hidden), of(4 * hidden), of(4 * hidden))
    state = (of(images, hidden), of(images, hidden)) if number % 3 else None
    rule = Rule(number % 2 == 0, number % 4 < 2, (1.0, 0.5)[number % 2], True)
    shift = (None, (of(1, 2), 1), (of(images, 3), 2))[number % 3]
    noise = of(images, outputs) if number % 4 == 1 else None
    return of(images, inputs), layer, cell, state, rule, shift, noise


SHAPES = [(3, 5, 8, 7), (1, 1, 3, 1), (5, 37, 20, 130), (4, 130, 16, 3), (2, 6, 17, 9)]


def check_equal(device: str, dtype: torch.dtype, number: int) -> None:
    from adafilter_dist.models.ops import gate_step_triton

    tolerance = {"rtol": 1e-10, "atol": 1e-10}
    if dtype == torch.float32:
        tolerance = {"rtol": 2e-4, "atol": 2e-4}
    for at, shape in enumerate(SHAPES):
        given = case(device, shape, dtype, number + at)
        _, layer, cell, state, *_ = given
        *ours, kept = gate_step_triton.step(*given)
        *theirs, wanted = gate_step_reference.step(*given)
        for one, other in zip([*ours, *kept], [*theirs, *wanted], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, **tolerance)
        grads = tuple(
            torch.randn_like(each) if (number + at + which) % 5 else None
            for which, each in enumerate(theirs)
        )
        c = None if state is None else state[1]
        more = (wanted, c, layer, cell)
        found = gate_step_triton.gradients(grads, *more)  # type: ignore[arg-type]
        expected = gate_step_reference.gradients(grads, *more)  # type: ignore[arg-type]
        for name, one, other in zip(found._fields, found, expected, strict=True):
            assert (one is None) == (other is None), name
            if one is not None:
                torch.testing.assert_close(
                    one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
                )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("number", range(4))
def test_triton_s_step_is_the_reference_s(run: Run, dtype: torch.dtype, number: int) -> None:
    run(check_equal, dtype, number)


def check_cubins(capability: int, hidden: int, dtype: torch.dtype) -> None:
    from adafilter_dist.models.ops import gate_step_triton
    from tests.models.ops.compile_only import compiled

    pooled, layer, cell, state, rule, shift, noise = case("cpu", (64, 256, hidden, 64), dtype, 4)
    assert state is not None
    with compiled(capability) as kernels:
        gates, _, h, c, kept = gate_step_triton.step(pooled, layer, cell, state, rule, shift, noise)
        assert isinstance(kept, Kept)
        grads = (gates, None, h, c)
        gate_step_triton.gradients(grads, kept, state[1], layer, cell)
    assert len(kernels) == 2 and all(kernel.asm["cubin"] for kernel in kernels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "hidden", "dtype"), [(90, 128, torch.float32), (80, 24, torch.float64)]
)
def test_they_compile_for_nvidia_s_gpus_without_one(
    compiler: Worker, capability: int, hidden: int, dtype: torch.dtype
) -> None:
    compiler.run(check_cubins, capability, hidden, dtype)
