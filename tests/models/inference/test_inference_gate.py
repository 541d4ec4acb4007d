"""The gate for inference decides as the gate it was made from."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.inference.inference_gate import InferenceGate
from adafilter_dist.recipe.sections.model import Gate

# With a hidden size of 12, P_i is multiplied into the LSTM for fewer than 16 channels.
LAYERS = [("a", 3, 8), ("b", 8, 15), ("c", 15, 16), ("d", 16, 40), ("e", 40, 6)]


def gates(norm: str = "layer_norm") -> tuple[RecurrentGate, InferenceGate]:
    drawn = torch.Generator().manual_seed(3)
    settings = Gate(hidden=12, input_norm=norm)  # type: ignore[arg-type]
    source = RecurrentGate(LAYERS, settings, generator=drawn).double().eval()
    return source, InferenceGate(source)


def inputs(n: int = 7) -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(5)
    return [torch.randn(n, c, 5, 4, generator=drawn, dtype=torch.float64) for _, c, _ in LAYERS]


@pytest.mark.parametrize("norm", ["layer_norm", "none"])
def test_same_logits_with_and_without_joined_matrices(norm: str) -> None:
    source, lean = gates(norm)
    assert lean._joined == [True, True, True, False, False]
    for x in (inputs(), inputs(1)):
        source.start(), lean.start()
        for index, pictures in enumerate(x):
            wanted, bits = source(index, pictures), lean(index, pictures)
            assert bits.dtype == torch.bool and torch.equal(bits.double(), wanted)
            logits = lean.decisions.logits[index]
            torch.testing.assert_close(
                logits, source.decisions.logits[index], rtol=1e-12, atol=1e-12
            )


def test_the_state_is_the_sources_and_torchs_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    source, lean = gates()
    assert torch.equal(torch.random.get_rng_state(), before)
    own, other = source.state_dict(), lean.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)


def test_layers_with_nothing_to_decide() -> None:
    """Later decisions still know what passed by; after the last one nothing is computed."""
    source, lean = gates()
    for index, constant in ((1, [1] * 15), (3, [0] * 40), (4, [1, 0, 1, 1, 0, 0])):
        lean.fix_gates(index, torch.tensor(constant, dtype=torch.int8))
    lean.fix_gates(0, torch.tensor([1, -1, 0, -1, 1, 1, 1, 1], dtype=torch.int8))
    source.start(), lean.start()
    seen = {}
    for index, x in enumerate(inputs()):
        source(index, x)
        if index in (1, 3, 4):
            before = lean._state
            lean.advance_state(index, x)
            assert (lean._state is before) == (index > 2)
        else:
            lean.observers = [lambda i, name, used, p: seen.update({i: used})]
            assert torch.equal(lean(index, x).double(), source.decisions.gates[index])
    used, own = seen[0], source.decisions.gates[0]
    assert (used[:, [0, 4, 5, 6, 7]] == 1).all() and not used[:, 2].any()
    assert torch.equal(used[:, [1, 3]], own[:, [1, 3]])
    assert not torch.equal(used, own)
