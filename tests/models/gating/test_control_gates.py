"""Gates that nothing is learned for: what each mode gives, in training and in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.control_gates import set_domains
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.inference.selected_conv import for_inference
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import images, pairs


def gated(**settings: object) -> AdaFilterNet:
    return convert(pairs(), size=16, gate=Gate(hidden=8, **settings))  # type: ignore[arg-type]


def gates(net: AdaFilterNet, x: Tensor) -> list[Tensor]:
    net(x)
    return list(net.gate.decisions.gates.values())


def test_a_partition_is_drawn_once_for_all_pictures_and_travels_with_the_weights() -> None:
    net, x = gated(mode="partition", probability=0.3).train(), images(6, 16)
    first = gates(net, x)
    assert all(torch.equal(a, b) for a, b in zip(first, gates(net.eval(), x), strict=True))
    bits = torch.cat([layer[0] for layer in first])
    assert set(bits.tolist()) == {0.0, 1.0}
    assert all((layer == layer[0]).all() for layer in first)
    other = convert(pairs(), size=16, gate=net.gate.settings, seed=5)
    other.load_state_dict(net.state_dict())
    assert torch.equal(torch.cat([layer[0] for layer in gates(other, x)]), bits)


def test_bernoulli_draws_anew_in_training_and_blends_in_evaluation() -> None:
    net, x = gated(mode="bernoulli", probability=0.8).train(), images(200, 16)
    first, second = gates(net, x), gates(net, x)
    assert not torch.equal(first[0], second[0])
    assert set(first[0].flatten().tolist()) == {0.0, 1.0}
    assert torch.cat([layer.flatten() for layer in first]).mean().item() == pytest.approx(
        0.8, abs=0.03
    )
    assert all((layer == 0.8).all() for layer in gates(net.eval(), x))


def test_constant_blends_both_branches() -> None:
    net, x = gated(mode="constant", probability=0.25), images(3, 16)
    assert all((layer == 0.25).all() for layer in gates(net.train(), x))


def test_an_oracle_gives_each_domain_its_gate_whatever_the_order_of_their_names() -> None:
    net, x = gated(mode="oracle", oracle={"photo": 1.0, "drawing": 0.0}), images(3, 16)
    domains = torch.tensor([0, 1, 1])
    set_domains(net, domains, ("drawing", "photo"))
    assert all(layer[:, 0].tolist() == [0.0, 1.0, 1.0] for layer in gates(net, x))
    set_domains(net, domains, ("photo", "drawing"))
    assert all(layer[:, 0].tolist() == [1.0, 0.0, 0.0] for layer in gates(net, x))
    set_domains(net, None)
    with pytest.raises(RuntimeError, match="domains were not given"):
        net(x)


def test_an_oracle_may_name_a_gate_for_each_group_of_layers() -> None:
    oracle = {"photo": [1.0, 0.0], "drawing": 0.0, "sketch": [0.0, 1.0]}
    net, x = gated(mode="oracle", oracle=oracle), images(3, 16)
    set_domains(net, torch.tensor([0, 1, 2]), ("drawing", "photo", "sketch"))
    first, second = (layer[:, 0].tolist() for layer in gates(net, x))
    assert (first, second) == ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    with pytest.raises(UserError, match="'photo' has 3 gates, and 2 layers are gated"):
        gated(mode="oracle", oracle={"photo": [1.0, 0.0, 1.0]})


@pytest.mark.parametrize("mode", ["partition", "bernoulli", "constant"])
def test_no_gradient_trains_a_control_and_none_is_exported_for_inference(mode: str) -> None:
    net = gated(mode=mode).train()
    net(images(4, 16)).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in net.gate.parameters())
    with pytest.raises(UserError, match=f"a control .*{mode}"):
        for_inference(net)


def test_a_frozen_gate_stays_at_its_random_start() -> None:
    net = gated(mode="frozen", decision="filter").train()
    net(images(4, 16)).sum().backward()
    assert all(not p.requires_grad for p in net.gate.parameters())
    learned = gated(decision="filter")
    assert torch.equal(gates(net, images(4, 16))[0], gates(learned, images(4, 16))[0])


def test_an_oracle_needs_its_domains_and_no_other_mode_takes_them() -> None:
    with pytest.raises(ValueError, match="mode=oracle needs the gate of each domain"):
        Gate(mode="oracle")
    with pytest.raises(ValueError, match="no other mode takes it"):
        Gate(oracle={"photo": 1.0})
