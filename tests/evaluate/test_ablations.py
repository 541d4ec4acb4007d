"""Accuracy with other gates, on a network whose every answer is known.

Its one gated layer has S that is right in domain "near" and wrong in "far", F the other way round,
and a gate that looks at the domain and nothing else.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate import ForwardSettings, GateEvaluation, evaluate_gates
from adafilter_dist.evaluate.gate_donors import donors_across, donors_within, partners
from adafilter_dist.models.gating.control_gates import OracleGates
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.recipe.sections.model import Gate
from tests.shared.evaluation_set import PREPROCESS, SIDE, Shared

N, NEAR = 48, 12
FAR = (torch.arange(N) >= NEAR).long()
RED = torch.arange(N) % 3 == 0
LABELS = torch.where(FAR.bool(), RED, ~RED).long()


def pictures() -> Tensor:
    """uint8 (N, 3, SIDE, SIDE): red or not, blue where the domain is far."""
    colours = torch.stack([RED, torch.zeros_like(RED), FAR.bool()], 1)
    return (255 * colours[:, :, None, None]).expand(-1, -1, SIDE, SIDE).to(torch.uint8)


def network() -> AdaFilterNet:
    conv, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 3)
    net = nn.Sequential(conv, nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 0, 0], [-1, 0, 0]])[:, :, None, None])
        head.weight.copy_(torch.eye(3, 2))
        head.bias.copy_(torch.tensor([0, 0, -9]))  # the third class is never recognised
    gated = convert(
        net, size=SIDE, gate=Gate(recipe="paper", hidden=1, input_norm="none"), head="4"
    )
    (layer,) = (one for one in gated.modules() if hasattr(one, "frozen_weight"))
    gate, cell = gated.gate, gated.gate.cell
    with torch.no_grad():
        layer.conv.weight.neg_()
        for parameter in gate.parameters():
            parameter.zero_()
        # h = tanh(tanh(blue)): of the LSTM's four parts, input and output stand open.
        gate.inputs[0].weight[0, 2] = 1
        cell.weight_ih[2] = 1
        cell.bias_ih[[0, 3]] = 20
        gate.outputs[0].weight.fill_(1)
    return gated


def measured(
    oracle: OracleGates | None = None, domains: bool = True, labels: Tensor = LABELS
) -> GateEvaluation:
    named = Domains(["near", "far"], FAR.numpy()) if domains else None
    return evaluate_gates(
        network(),
        Shared(labels, batch_size=10, images=pictures(), domains=named),
        ForwardSettings(PREPROCESS, torch.device("cpu")),
        num_classes=3,
        seed=3,
        oracle=oracle,
    )


def test_every_ablation_gives_the_accuracy_that_it_must() -> None:
    found = measured({"near": 0, "far": 1})
    far, labels = FAR.numpy(), LABELS.numpy()

    def same_domain(donors: object) -> float:
        return float((far[donors] == far).mean())

    wanted = {
        "all_1": 0.75,  # far alone is right
        "all_0": 0.25,
        "mean": 0.75,  # three quarters of F
        "permuted": same_domain(partners(N, 3)),
        "same_class": same_domain(donors_within(labels, 3, "same_class")),
        "other_class": same_domain(donors_across(labels, 3, "other_class")),
        "same_domain": 1.0,
        "other_domain": 0.0,
        "domain_mean": 1.0,
        "oracle": 1.0,
    }
    assert found.learned.top1 == 1
    assert {name: one.evaluation.top1 for name, one in found.ablations.items()} == wanted
    assert list(found.ablations) == list(wanted) and found.forwards == 11
    for name, top1 in wanted.items():
        assert found.ablations[name].difference.value == pytest.approx(1 - top1)
    assert len({wanted["permuted"], wanted["same_class"], wanted["other_class"]}) == 3
    wrong = measured({"near": 1, "far": 0})
    assert wrong.ablations["oracle"].evaluation.top1 == 0
    half = measured({"near": [1], "far": 1})  # of the one group of layers
    assert half.ablations["oracle"].evaluation.top1 == 0.75
    with pytest.raises(UserError, match="'far' has 2 gates, and 1 layers are gated"):
        measured({"near": 1, "far": [0, 1]})


def test_figures_of_gates_that_are_the_domain() -> None:
    found = measured()
    assert "oracle" not in found.ablations
    figures, (layer,) = found.figures, found.layers
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert figures.information == layer.information == pytest.approx(quarter)
    assert figures.domain_entropy == pytest.approx(quarter)
    assert figures.mean == layer.mean == 0.75
    assert figures.between is not None and figures.within is not None
    assert figures.between + figures.within == pytest.approx(0.1875 * N / (N - 1))
    described = [(one.name, one.n, one.mean) for one in found.domains]
    assert described == [("near", NEAR, 0.0), ("far", N - NEAR, 1.0)]
    assert layer.domains == {"near": 0.0, "far": 1.0}
    accuracies = [one.top1 for one in found.ablations["all_1"].evaluation.domains]
    assert accuracies == [0, 1]


def test_without_domains_nothing_is_said_of_them() -> None:
    found = measured(domains=False)
    assert found.forwards == 7 and not found.domains
    assert found.figures.information is None and found.layers[0].information is None
    assert found.layers[0].domains is None


def test_pictures_without_a_donor_are_left_out() -> None:
    labels = LABELS.clone()
    labels[0] = 2  # alone in its class, and never recognised
    found = measured(labels=labels)
    assert found.learned.n == N and found.learned.top1 == (N - 1) / N
    same, other = found.ablations["same_class"], found.ablations["other_class"]
    assert same.evaluation.n == N - 1 and other.evaluation.n == N
    assert [one.n for one in same.evaluation.domains] == [NEAR - 1, N - NEAR]
    assert same.difference.value == pytest.approx(1 - same.evaluation.top1)
