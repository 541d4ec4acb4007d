"""The compiled step of the gate against PyTorch's, layer after layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.inference import gate_cpu
from adafilter_dist.models.inference.gate_cpu import can_step
from adafilter_dist.models.inference.inference_gate import InferenceGate
from adafilter_dist.recipe.sections.model import Gate

pytestmark = [
    pytest.mark.may_skip("needs a compiler"),
    pytest.mark.skipif(gate_cpu._kernel() is None, reason="no compiler, or ADAFILTER_NATIVE=0"),
]
LAYERS = [("a", 3, 70), ("b", 70, 15), ("c", 1500, 64), ("d", 200, 40), ("e", 7, 129)]
SIZES = [(9, 8), (1, 1), (16, 17), (3, 2), (5, 13)]


def gate(norm: str, hidden: int) -> InferenceGate:
    drawn = torch.Generator().manual_seed(3)
    settings = Gate(hidden=hidden, input_norm=norm)  # type: ignore[arg-type]
    return InferenceGate(RecurrentGate(LAYERS, settings, generator=drawn).eval())


def inputs(n: int) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(5)
    made = []
    for (_, channels, _), size in zip(LAYERS, SIZES, strict=True):
        x = torch.randn(n, channels, *size, generator=drawn) + torch.randn(1, generator=drawn)
        made.append(x.contiguous(memory_format=torch.channels_last))
    return made


@pytest.mark.parametrize("norm", ["layer_norm", "none"])
@pytest.mark.parametrize("hidden", [20, 128])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_same_logits_as_pytorch_in_float64(n: int, hidden: int, norm: str) -> None:
    lean, xs = gate(norm, hidden), inputs(n)
    exact = gate(norm, hidden).double()
    exact.prepare()
    lean.start(), exact.start()
    for index, x in enumerate(xs):
        assert can_step(x, lean._weights(index)) and not can_step(x.double(), exact._weights(index))
        with torch.no_grad():
            lean(index, x), exact(index, x.double())
        logits, wanted = lean.decisions.logits[index], exact.decisions.logits[index]
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), wanted, rtol=1e-4, atol=1e-4)


def test_images_do_not_see_each_other_nor_threads() -> None:
    lean, xs = gate("layer_norm", 128), inputs(4)

    def logits(chosen: slice) -> list[Tensor]:
        lean.start()
        for index, x in enumerate(xs):
            lean(index, x[chosen])
        return list(lean.decisions.logits.values())

    with torch.no_grad():
        together, alone = logits(slice(4)), logits(slice(2, 3))
        torch.set_num_threads(3)
        threads = logits(slice(4))
    for a, b, c in zip(together, alone, threads, strict=True):
        assert torch.equal(a[2:3], b) and torch.equal(a, c)


def test_a_layer_that_is_passed_by_moves_the_state_alike() -> None:
    lean, xs = gate("layer_norm", 20), inputs(2)
    made = []
    for by in (True, False):
        lean.start()
        with torch.no_grad():
            for index, x in enumerate(xs[:-1]):
                (lean.advance_state if by else lean)(index, x)
            lean(4, xs[4])
        made.append(lean.decisions.logits[4])
    assert torch.equal(*made)


def test_what_it_does_not_do() -> None:
    step, x = gate("none", 20)._weights(1), inputs(2)[1].repeat(1, 1, 4, 4)
    x = x.contiguous(memory_format=torch.channels_last)
    assert can_step(x, step)
    assert not can_step(x.contiguous(memory_format=torch.contiguous_format), step)
    assert not can_step(x.bfloat16(), step) and not can_step(x[:0], step)
    assert not can_step(x.repeat(20, 1, 1, 1), step)
    assert not can_step(x.clone().requires_grad_(), step)
