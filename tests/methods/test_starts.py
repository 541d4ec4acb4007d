"""Methods that begin with what they compute from the training pictures: LP-FT and Co-Tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.methods.base import StartData
from adafilter_dist.methods.export import export_model, load
from adafilter_dist.methods.source_relation import calibrated_relation, direct_relation
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.backbone.linear_fit import Features
from adafilter_dist.recipe.schema import Recipe
from tests.methods.test_export import PREPROCESS

CPU = torch.device("cpu")


def build(method: Any, weights: str | None = "FASHION_MNIST", **more: Any) -> TrainableModel:
    """The bundled network, whose weights have a classifier of ten classes, for four classes."""
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist"},
            "model": {"name": "small_resnet", "weights": weights},
            "method": method,
            **more,
        }
    )
    return build_method(load_backbone(recipe, 4), recipe)


def features(n: int, seed: int, width: int) -> Features:
    """Four overlapping classes; features of very different means and scales."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    centres = torch.randn(4, width, generator=torch.Generator().manual_seed(9))
    x = centres[y] + 2 * torch.randn(n, width, generator=draw)
    return Features(x * torch.logspace(-2, 2, width) + 3, y)


def start_data(width: int, val: bool = True) -> StartData:
    return StartData(features(120, 1, width), features(80, 2, width) if val else None, 4, CPU)


def head_of(trainable: TrainableModel) -> nn.Linear:
    head = trainable.model.get_submodule(trainable.classifier)
    assert isinstance(head, nn.Linear)
    return head


@pytest.mark.parametrize("val", [True, False])
def test_lp_ft_starts_at_the_optimum_for_features_as_they_come(val: bool) -> None:
    trainable = build({"name": "lp_ft"})
    data = start_data(head_of(trainable).in_features, val)
    assert trainable.start is not None
    start = trainable.start(data)
    weight, bias = (start.values[f"{trainable.classifier}.{key}"] for key in ("weight", "bias"))
    strength = float(start.line.split("L2 ")[1].split(",")[0])

    # The gradient of the regularised loss, in terms of standardised features, is zero there.
    mean, scale = data.train.x.double().mean(0), data.train.x.double().std(0, correction=0)
    standardised = (weight.double() * scale).requires_grad_()
    offset = (bias.double() + weight.double() @ mean).requires_grad_()
    logits = ((data.train.x.double() - mean) / scale) @ standardised.T + offset
    loss = nn.functional.cross_entropy(logits, data.train.y)
    (loss + 0.5 * strength * standardised.square().sum()).backward()
    assert standardised.grad is not None and offset.grad is not None
    assert float(standardised.grad.norm()) < 1e-3 and float(offset.grad.norm()) < 1e-3
    torch.testing.assert_close(
        data.train.x @ weight.T + bias, logits.detach().float(), rtol=1e-3, atol=1e-3
    )
    if data.val is not None:
        right = ((data.val.x @ weight.T + bias).argmax(1) == data.val.y).double().mean()
        assert f"{right:.1%} correct on the validation split" in start.line
    else:
        assert "correct on a tenth of the training pictures" in start.line


def test_lp_ft_trains_everything() -> None:
    trainable = build({"name": "lp_ft"})
    assert all(parameter.requires_grad for parameter in trainable.model.parameters())


def test_the_direct_relation_is_the_mean_prediction_on_a_class() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]], dtype=torch.float64)
    found = direct_relation(probabilities, torch.tensor([2, 2, 0]), 3)
    torch.testing.assert_close(
        found, torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    )


def test_both_relations_are_the_table_of_counts_for_predictions_that_are_certain() -> None:
    """One-hot predictions: the regression's optimum is the share of each class among a source
    class, and Bayes turns it into the share of each source class in a class."""
    counts = torch.tensor([[30, 10, 5], [4, 20, 15]])
    labels = torch.arange(2).repeat_interleave(counts.sum(1))
    sources = torch.cat([torch.arange(3).repeat_interleave(row) for row in counts])
    predictions = torch.eye(3, dtype=torch.float64)[sources], labels
    wanted = counts.double() / counts.sum(1, keepdim=True)
    torch.testing.assert_close(direct_relation(*predictions, 2), wanted)
    # As one strength is as accurate as another, the strongest is taken; the factor undoes most.
    found, note = calibrated_relation(predictions, predictions, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
    assert f"{(30 + 20 + 15) / 84:.1%} correct" in note


def co_tuned(**more: Any) -> tuple[TrainableModel, Tensor, Tensor]:
    trainable = build({"name": "co_tuning", **more})
    assert trainable.start is not None
    start = trainable.start(start_data(head_of(trainable).in_features))
    trainable.model.load_state_dict(trainable.model.state_dict() | start.values)
    draw = torch.Generator().manual_seed(3)
    return trainable, torch.randn(8, 3, 28, 28, generator=draw), torch.arange(8) % 4


def test_co_tunings_relation_is_of_the_source_classifier_before_training() -> None:
    trainable, *_ = co_tuned()
    head = head_of(trainable)
    data = start_data(head.in_features)
    source = head.source
    assert isinstance(source, nn.Linear) and isinstance(head.relation, Tensor)
    for label in range(4):
        of_it = data.train.x[data.train.y == label]
        torch.testing.assert_close(
            head.relation[label], source(of_it).softmax(1).mean(0).detach(), rtol=1e-3, atol=1e-5
        )


def test_co_tunings_penalty_is_the_source_heads_cross_entropy() -> None:
    trainable, x, y = co_tuned(strength=1.5)
    head, seen = head_of(trainable), list[Tensor]()
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainable.model.train()(x)
    penalty = trainable.penalty(y)
    assert isinstance(head.source, nn.Linear) and isinstance(head.relation, Tensor)
    p = (seen[0] @ head.source.weight.T + head.source.bias).softmax(1).detach()
    wanted = 1.5 * sum(
        -sum(float(head.relation[y[i], s] * p[i, s].log()) for s in range(10)) / 8 for i in range(8)
    )
    assert float(penalty) == pytest.approx(wanted, rel=1e-5)

    # Both heads and the backbone learn from it, the source head at the backbone's rate.
    penalty.backward()
    trained = {n for n, p in trainable.model.named_parameters() if p.grad is not None}
    path = trainable.classifier
    assert {f"{path}.source.weight", f"{path}.source.bias"} < trained and len(trained) > 10
    assert not {f"{path}.weight", f"{path}.bias"} & trained


def test_co_tunings_source_head_has_the_backbones_rate() -> None:
    optim = {"lr": 0.1, "lr_head": 0.3, "weight_decay": 0.01}
    trainable = build({"name": "co_tuning"}, optim=optim)
    head = head_of(trainable)
    assert isinstance(head.source, nn.Linear)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in trainable.groups for p in g["params"]}
    assert found[id(head.weight)] == (0.3, 0.01) and found[id(head.bias)] == (0.3, 0.0)
    assert found[id(head.source.weight)] == (0.1, 0.01)
    assert found[id(head.source.bias)] == (0.1, 0.0)


def test_co_tunings_export_has_the_new_head_alone(tmp_path: Path) -> None:
    trainable, x, _ = co_tuned()
    export_model(tmp_path, trainable, classes=list("abcd"), preprocess=PREPROCESS)
    model, _ = load(tmp_path)
    assert torch.equal(model(x), trainable.model.eval()(x))
    assert not any("source" in name or "relation" in name for name in model.state_dict())
    head = model.get_submodule(trainable.head)
    assert type(head) is nn.Linear and head.out_features == 4


def test_what_co_tuning_cannot_do_without() -> None:
    with pytest.raises(UserError, match="needs the classifier of the pre-trained weights"):
        build({"name": "co_tuning"}, weights=None)
    with pytest.raises(UserError, match=r"mixes pictures of several; set augment\.cutmix=0"):
        build({"name": "co_tuning"}, augment={"cutmix": 1.0})
    trainable = build({"name": "co_tuning", "relation": "calibrated"})
    assert trainable.start is not None
    with pytest.raises(UserError, match="calibrated needs a validation split"):
        trainable.start(start_data(head_of(trainable).in_features, val=False))
