"""The recurrent gate: order, precision, statistics, draws, and a start at which gates decide."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate import RecurrentGate, find_gate
from adafilter_dist.models.gating.gate_overrides import constant, observe_gates, override_gates
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import images, network, pairs

LAYERS = [("a", 3, 8), ("b", 8, 4), ("c", 4, 6)]


def gate(**settings: object) -> RecurrentGate:
    generator = torch.Generator().manual_seed(3)
    return RecurrentGate(LAYERS, Gate(hidden=16, **settings), generator=generator).double()


def inputs(n: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, c, 5, 5, generator=generator, dtype=torch.float64) for _, c, _ in LAYERS]


def walk(module: RecurrentGate, xs: list[Tensor]) -> list[Tensor]:
    module.start()
    gates = [module(index, x) for index, x in enumerate(xs)]
    module.stop()
    return gates


@pytest.mark.parametrize("norm", ["layer_norm", "none"])
def test_logits_are_those_of_one_lstm_over_the_layers(norm: str) -> None:
    module, xs = gate(input_norm=norm), inputs()
    walk(module, xs)
    state = (torch.zeros(7, 16).double(), torch.zeros(7, 16).double())
    cell = module.cell
    for index, x in enumerate(xs):
        pooled = x.flatten(2).mean(2)
        if norm == "layer_norm":
            centred = pooled - pooled.mean(1, keepdim=True)
            pooled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        u = pooled @ module.inputs[index].weight.T + module.inputs[index].bias
        parts = u @ cell.weight_ih.T + cell.bias_ih + state[0] @ cell.weight_hh.T + cell.bias_hh
        i, f, g, o = parts.chunk(4, 1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        state = (o.sigmoid() * c.tanh(), c)
        logits = state[0] @ module.outputs[index].weight.T + module.outputs[index].bias
        torch.testing.assert_close(module.decisions.logits[index], logits)
        assert torch.equal(module.decisions.gates[index], (logits > 0).double())


def test_state_is_zero_at_the_start_of_each_forward() -> None:
    module, xs = gate().eval(), inputs()
    first = walk(module, xs)
    assert all(torch.equal(a, b) for a, b in zip(first, walk(module, xs), strict=True))
    one_step = walk(module, xs[:1])
    assert torch.equal(one_step[0], first[0])


def test_later_layers_know_what_the_earlier_ones_saw() -> None:
    module, xs = gate(), inputs()
    walk(module, xs)
    before = module.decisions.logits[2]
    walk(module, [xs[0] * -3 + 1, *xs[1:]])
    assert not torch.equal(module.decisions.logits[2], before)


def test_images_do_not_see_each_other() -> None:
    module, xs = gate().eval(), inputs()
    together = walk(module, xs)
    alone = walk(module, [x[2:3] for x in xs])
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2:3], b)


def test_outside_a_forward_of_the_network_it_refuses() -> None:
    net = convert(pairs(), size=16)
    with pytest.raises(RuntimeError, match="call the whole network"):
        net.backbone(images(2, 16))
    with pytest.raises(RuntimeError):  # a forward that failed leaves nothing behind
        net(images(2, 16)[:, :2])
    with pytest.raises(RuntimeError, match="call the whole network"):
        net.backbone(images(2, 16))


def test_the_start_is_balanced_and_depends_on_the_picture() -> None:
    net = convert(network("resnet18", torch.float32), size=32)
    seen: list[Tensor] = []
    with torch.no_grad(), observe_gates(net, lambda i, name, gates, p: seen.append(gates)):
        net(images(16, dtype=torch.float32))
    gates = torch.cat(seen, 1)
    assert 0.4 < float(gates.mean()) < 0.6
    assert float(gates.var(0, unbiased=False).mean()) > 0.02


def test_bias_and_scale_set_the_start() -> None:
    assert all(bool((linear.bias == 2.5).all()) for linear in gate(bias=2.5).outputs)
    small, large = gate(init_scale=1.0), gate(init_scale=4.0)
    for a, b in zip(small.outputs, large.outputs, strict=True):
        torch.testing.assert_close(4 * a.weight, b.weight)
    assert float(gate(bias=0.0).running_mean[0]) == 0.5


def test_the_start_is_a_function_of_the_seed_alone() -> None:
    nets, source = [], pairs()
    for seed in (0, 0, 1):
        torch.rand(3)
        before = torch.random.get_rng_state()
        nets.append(convert(copy.deepcopy(source), size=16, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
    states = [net.gate.state_dict() for net in nets]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[0]["cell.weight_ih"], states[2]["cell.weight_ih"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_stays_in_its_precision_under_autocast(dtype: torch.dtype) -> None:
    net = convert(pairs().to(dtype), size=16)
    with torch.no_grad():
        for layer in net.gated_layers.values():
            layer.bn2.bias += 1
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.train()(images(4, 16, dtype))
    # torch leaves float64 alone under autocast
    assert logits.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
    assert {t.dtype for t in net.gate.decisions.logits.values()} == {dtype}
    assert {t.dtype for t in net.gate.decisions.gates.values()} == {dtype}
    logits.float().sum().backward()
    assert net.gate.cell.weight_ih.grad is not None
    assert net.gate.cell.weight_ih.grad.dtype == dtype and net.gate.cell.weight_ih.grad.any()


def test_every_gate_parameter_gets_a_gradient() -> None:
    net = convert(pairs(), size=16)
    with torch.no_grad():  # at conversion both branches agree, and the gradient is zero
        for layer in net.gated_layers.values():
            layer.bn2.bias += 1
    net.train()(images(8, 16)).square().sum().backward()
    for name, parameter in net.gate.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_gradient_of_the_gates_is_zero_right_after_conversion() -> None:
    """With statistics of all images; those of the choosers differ from branch to branch."""
    net = convert(pairs(), size=16, batchnorm="all")
    net.train()(images(8, 16)).square().sum().backward()
    gradients = [parameter.grad for parameter in net.gate.parameters()]
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


def test_statistics_are_the_mean_and_the_variance_over_images() -> None:
    module = gate()
    batches = [inputs(7), [x.flip(0) * 2 - 1 for x in inputs(5)]]
    seen = [walk(module, xs) for xs in batches]
    step_statistics.apply(module, step_statistics.collect(module) / 2)
    means = [torch.stack([g.mean() for g in gates]) for gates in seen]
    variances = [torch.stack([(g - g.mean(0)).square().mean() for g in gates]) for gates in seen]
    torch.testing.assert_close(module.last_mean, (means[0] + means[1]) / 2)
    torch.testing.assert_close(module.last_variance, (variances[0] + variances[1]) / 2)
    torch.testing.assert_close(module.running_mean, 0.45 + 0.1 * module.last_mean)
    assert not module.step_sums.any()


def test_evaluation_and_discarded_steps_leave_no_trace() -> None:
    module = gate()
    before = copy.deepcopy(module.state_dict())
    walk(module.eval(), inputs())
    assert not step_statistics.collect(module).any()
    walk(module.train(), inputs())
    step_statistics.discard(module)
    step_statistics.apply(module, step_statistics.collect(module))
    kept = {k: v for k, v in module.state_dict().items() if k != "running_mean"}
    before.pop("running_mean")
    torch.testing.assert_close(kept, before, rtol=0, atol=0)
    assert not module.last_variance.any()


@pytest.mark.parametrize("kind", ["gumbel", "semhash"])
def test_draws_come_from_torchs_default_generator(kind: str) -> None:
    module, xs = gate(estimator=kind), inputs()

    def keyed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat(walk(module, xs), 1)

    assert torch.equal(keyed(1), keyed(1)) and not torch.equal(keyed(1), keyed(2))
    module.eval()
    assert torch.equal(keyed(1), keyed(2)), "evaluation is deterministic"


def test_overrides_and_observers_see_every_layer_and_go_away() -> None:
    net = convert(pairs(), size=16)
    seen: list[tuple[int, str, float, Tensor]] = []
    with (
        override_gates(net, lambda index, gates: gates * 0 + index),
        observe_gates(net, lambda i, name, g, p: seen.append((i, name, float(g.mean()), p))),
    ):
        net(images(2, 16))
    assert [entry[:3] for entry in seen] == [(0, "conv1", 0.0), (1, "conv2", 1.0)]
    torch.testing.assert_close(seen[1][3], torch.sigmoid(net.gate.decisions.logits[1]))
    net(images(2, 16))
    assert len(seen) == 2 and not net.gate.overrides
    with pytest.raises(KeyError), override_gates(net, constant(1)):
        raise KeyError
    assert not net.gate.overrides
    with pytest.raises(ValueError, match="no gate"):
        find_gate(torch.nn.Linear(1, 1))


def test_selection_takes_each_images_own_filters() -> None:
    """y is BN1(F x) where the gate is 1 and BN2(S x) where it is 0."""
    net: AdaFilterNet = convert(pairs(), size=16)
    layer = net.gated_layers["conv1"]
    with torch.no_grad():
        layer.conv.weight.mul_(-1)
        layer.bn2.bias += 3
    x = images(4, 16)
    net.gate.start()
    y = layer(x)
    bits = net.gate.decisions.gates[0].bool()[:, :, None, None]
    bn1, bn2, conv = layer.bn1, layer.bn2, layer.conv
    tuned = bn1(conv(x))
    frozen = bn2(F.conv2d(x, layer.frozen_weight, layer.frozen_bias, padding=1))
    assert torch.equal(y, torch.where(bits, tuned, frozen))
    assert bits.any() and not bits.all() and not torch.allclose(tuned, frozen)
