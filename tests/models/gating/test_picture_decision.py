"""The decision on a picture: what it costs, what it sees, and when it comes into force."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.decide import decide, measure_choices
from adafilter_dist.models.gating.gate_overrides import constant, override_gates
from adafilter_dist.models.gating.look_ahead import LookAhead
from adafilter_dist.models.gating.picture_decision import (
    PictureDecision,
    fit_decision,
    group_of_layers,
    random_decision,
)
from adafilter_dist.models.inference.selected_conv import for_inference
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import images, network, pairs

BITS = torch.tensor([[0.0], [1.0]])


def two_kinds(n: int = 60, width: int = 5) -> tuple[Tensor, Tensor]:
    """Features that tell two kinds of pictures apart, and which kind each is."""
    generator = torch.Generator().manual_seed(1)
    kind = torch.arange(n) % 2
    features = torch.randn(n, width, generator=generator, dtype=torch.float64)
    features[:, 2] = 40 + 6 * kind + 0.5 * features[:, 2]
    return features, kind


def chosen(fitted: dict[str, Tensor], features: Tensor, choices: Tensor) -> Tensor:
    decision = PictureDecision(features.shape[1], choices.shape[1], dtype=torch.float64)
    decision.decide(fitted, 4.0)
    return (decision(features) > 0).long()


def gated(**settings: object) -> AdaFilterNet:
    return convert(pairs(), size=16, gate=Gate(hidden=8, **settings))  # type: ignore[arg-type]


def test_each_kind_gets_the_filters_that_cost_it_less() -> None:
    features, kind = two_kinds()
    losses = torch.stack([torch.where(kind == 0, 0.2, 2.0), torch.where(kind == 0, 1.0, 0.5)], 1)
    fitted = fit_decision(features, losses, BITS, lean=0.0, ridge=1e-4)
    assert torch.equal(chosen(fitted, features, BITS)[:, 0], kind)


@pytest.mark.parametrize(("gain", "tuned"), [(0.3, 0), (0.7, 1)])
def test_lean_is_what_tuned_filters_must_gain(gain: float, tuned: int) -> None:
    features, _ = two_kinds()
    losses = torch.stack([torch.full((60,), 1.0 + gain), torch.ones(60)], 1)
    fitted = fit_decision(features, losses, BITS, lean=0.5, ridge=1e-4)
    assert chosen(fitted, features, BITS).eq(tuned).all()


def test_the_fit_is_the_minimum_of_its_objective() -> None:
    """A weighted logistic regression, minimised here by Newton's method."""
    features, kind = two_kinds(30, 3)
    generator = torch.Generator().manual_seed(2)
    losses = torch.rand(30, 2, generator=generator, dtype=torch.float64) + kind[:, None]
    ridge, lean = 0.01, 0.1
    fitted = fit_decision(features, losses, BITS, lean=lean, ridge=ridge)

    scale = features.std(0, unbiased=False) * math.sqrt(3)
    standard = (features - features.mean(0)) / scale
    gain = losses[:, 0] - losses[:, 1] - lean
    share = gain.abs() / gain.abs().sum()
    rows = torch.cat([standard, torch.ones(30, 1, dtype=torch.float64)], 1)
    weight = torch.zeros(4, dtype=torch.float64)
    # Two weights w and -w of the halves stand for their difference: ridge / 2 on it.
    penalty = torch.tensor([ridge, ridge, ridge, 1e-9], dtype=torch.float64)
    for _ in range(50):
        probability = torch.sigmoid(rows @ weight)
        slope = rows.T @ (share * (probability - (gain > 0).double())) + penalty * weight
        curvature = rows.T @ (rows * (share * probability * (1 - probability))[:, None])
        weight = weight - torch.linalg.solve(curvature + penalty.diag(), slope)
    torch.testing.assert_close(
        fitted["weight"][1] - fitted["weight"][0], weight[:3], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        fitted["bias"][1] - fitted["bias"][0], weight[3], atol=1e-5, rtol=1e-4
    )


def test_pictures_to_which_all_is_equal_have_no_say() -> None:
    features, kind = two_kinds()
    losses = torch.ones(60, 2, dtype=torch.float64)
    losses[kind == 1, 0] = 3.0  # these need tuned filters, the others do not care
    fitted = fit_decision(features, losses, BITS, lean=0.0, ridge=1e-4)
    assert chosen(fitted, features, BITS)[kind == 1].eq(1).all()
    silent = fit_decision(features, torch.ones(60, 2), BITS, lean=0.0, ridge=1e-4)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in silent.values())


def test_groups_are_decided_together_and_a_constant_feature_does_no_harm() -> None:
    features, kind = two_kinds()
    features[:, 0] = 7.0
    choices = PictureDecision(5, 2).choices.double()
    assert choices.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    losses = torch.ones(60, 4, dtype=torch.float64)
    losses[kind == 0, 2], losses[kind == 1, 1] = 0.0, 0.0
    fitted = fit_decision(features, losses, choices, lean=0.0, ridge=1e-4)
    bits = chosen(fitted, features, choices)
    assert torch.equal(bits, torch.stack([1 - kind, kind], 1))
    assert group_of_layers(7, 3) == [0, 0, 0, 1, 1, 2, 2]


def test_a_drawn_decision_divides_the_pictures_and_knows_no_losses() -> None:
    features, _ = two_kinds(400)
    drawn = [random_decision(features, BITS, torch.Generator().manual_seed(s)) for s in (0, 1, 0)]
    shares = [chosen(each, features, BITS).double().mean() for each in drawn]
    assert 0.3 < shares[0] < 0.7
    assert torch.equal(drawn[0]["weight"], drawn[2]["weight"])
    assert not torch.equal(drawn[0]["weight"], drawn[1]["weight"])


def test_look_ahead_sees_the_means_of_the_first_layers_and_runs_no_others() -> None:
    source = network("resnet18").eval()
    batchnorms = ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    x = images(3, 32)
    means: list[Tensor] = []
    for name in batchnorms:
        source.get_submodule(name).register_forward_hook(
            lambda module, args, y: means.append(y.mean((2, 3)))  # type: ignore[arg-type, return-value]
        )
    source(x)
    plain = network("resnet18")
    ahead = LookAhead(plain, batchnorms, ["layer4.1.conv2", "fc"])
    later: list[object] = []
    ahead.network.get_submodule("layer1.1").register_forward_hook(
        lambda *_: later.append(1)  # type: ignore[arg-type, return-value]
    )
    torch.testing.assert_close(ahead.train()(x), torch.cat(means, 1), rtol=0, atol=1e-12)
    assert not later
    assert ahead.width == 192
    assert not list(ahead.parameters())
    assert isinstance(plain.get_submodule("fc"), nn.Linear)  # the source itself is left whole


def test_without_look_ahead_it_sees_the_mean_colour_and_nothing_of_a_grey_picture() -> None:
    net = gated(look_ahead=0.0)
    assert net.look_ahead is not None and net.gate.picture is not None
    assert net.gate.picture.weight.shape[-1] == 3 and not list(net.look_ahead.buffers())
    x = images(4, 16)
    each = x.mean((2, 3))
    wanted = (each - each.mean(1, keepdim=True)) / (each.var(1, correction=0) + 1e-5)[
        :, None
    ].sqrt()
    torch.testing.assert_close(net.look_ahead(x), wanted, rtol=0, atol=1e-12)
    assert float(net.look_ahead(x[:, :1].expand(-1, 3, -1, -1)).abs().max()) < 1e-9


def test_until_the_decision_the_network_is_plain_fine_tuning() -> None:
    net = gated().train()
    x = images(6, 16)
    logits = net(x)
    with override_gates(net, constant(1.0)):
        assert torch.equal(net(x), logits)
    logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in net.gate.parameters())


def test_a_decision_chooses_by_picture_and_each_filter_may_still_differ() -> None:
    net = gated(lean=0.0, margin=1.0, look_ahead=1.0)
    x = images(16, 16)
    x[::2] += 3
    kind = torch.arange(16) % 2
    net.eval()
    assert net.gate.picture is not None
    features, losses = measure_choices(net, lambda: net(x), kind)
    assert features.shape == (16, net.gate.picture.weight.shape[1])
    for bit, column in zip((0.0, 1.0), losses.unbind(1), strict=True):
        with override_gates(net, constant(bit)):
            wanted = F.cross_entropy(net(x), kind, reduction="none")
        torch.testing.assert_close(column, wanted, rtol=0, atol=1e-12)

    # Fine-tuned filters that suit one kind only, by hand: the others' losses are twice as high.
    with torch.no_grad():
        losses = torch.stack([torch.ones(16), torch.where(kind == 0, 2.0, 0.5)], 1)
    fitted = fit_decision(features, losses, net.gate.picture.choices, lean=0.0, ridge=1e-4)
    net.gate.picture.decide(fitted, 1.0)
    logits = net(x)
    first = net.gate.decisions.logits[0]
    own = net.gate.decisions.logits[0] - torch.where(kind == 1, 1.0, -1.0)[:, None]
    assert (own.abs() < 1).any()
    assert (first[kind == 1].mean() - first[kind == 0].mean()).item() > 1

    # The same bits where only the selected filters are computed.
    torch.testing.assert_close(for_inference(net)(x), logits, rtol=0, atol=1e-9)
    again = copy.deepcopy(net)
    assert torch.equal(again(x), logits)


def test_the_pre_trained_layers_run_only_where_the_choice_depends_on_the_picture() -> None:
    net, x = gated(look_ahead=1.0), images(6, 16)
    net(x)
    assert net.gate.decisions.features is None  # not decided yet
    features, _ = measure_choices(net, lambda: net(x), torch.zeros(6, dtype=torch.int64))
    picture = net.gate.picture
    assert picture is not None
    same = torch.tensor([[1.0, 0.0]]).expand(6, 2)
    picture.decide(fit_decision(features, same, picture.choices, lean=0.0, ridge=1e-4), 4.0)
    logits = net(x)
    assert net.gate.decisions.features is None and not picture.weight.any()
    with override_gates(net, constant(1.0)):
        assert torch.equal(net(x), logits)
    drawn = random_decision(features, picture.choices, torch.Generator().manual_seed(0))
    net.load_state_dict(net.state_dict() | {f"gate.picture.{k}": v for k, v in drawn.items()})
    net(x)
    assert net.gate.decisions.features is not None
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_decide_in_your_own_loop() -> None:
    net = gated(lean=5.0, contrast=0.0).train()
    x, labels = images(8, 16), torch.arange(8) % 3
    summary = decide(net, [(x[:5], labels[:5]), (x[5:], labels[5:])])
    # Nothing is trained: both branches are the same, and fine-tuned filters would have to gain 5.
    assert (summary.pictures, summary.tuned) == (8, 0.0)
    assert summary.frozen_loss == pytest.approx(summary.tuned_loss)
    assert summary.decided_loss == summary.frozen_loss
    assert net.training
    assert summary.contrast is None
    # Nothing but the lean speaks for pre-trained filters, for all pictures alike.
    alike = decide(gated(lean=5.0).train(), [(x, labels)])
    assert (alike.tuned, alike.contrast) == (1, 0)
    with pytest.raises(UserError, match="no decision=picture"):
        decide(gated(decision="filter"), [(x, labels)])
    with pytest.raises(UserError, match="no pictures"):
        decide(net, [])


def test_what_cannot_be_together_is_refused() -> None:
    with pytest.raises(ValueError, match="recipe=paper has no decision=picture"):
        Gate(recipe="paper", decision="picture")
    assert Gate(recipe="paper").decision == "filter"
