"""L2-SP against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.training.session import frozen_tensor_names
from tests.methods.test_methods import build

LABELS = torch.zeros(2, dtype=torch.int64)


def test_a_step_is_the_closed_form() -> None:
    """With alpha, beta and lr, w moves by -lr (dL + alpha (w - w0)), the head by -lr (dL + beta w).

    Of no weight decay, though the recipe has one.
    """
    alpha, beta, lr = 0.3, 0.2, 0.1
    trainable, _ = build({"name": "l2sp", "alpha": alpha, "beta": beta})
    model = trainable.model.double().eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32).double()), LABELS)
    of_loss = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    gradients = dict(zip(before, of_loss, strict=True))
    (loss + trainable.penalty(LABELS)).backward()
    optimizer = torch.optim.SGD([group | {"lr": lr} for group in trainable.groups])
    optimizer.step()
    for name, parameter in model.named_parameters():
        pull = (
            beta * before[name] if name.startswith("fc.") else alpha * (before[name] - start[name])
        )
        wanted = before[name] - lr * (gradients[name] + pull)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_a_new_head_is_pulled_to_zero_a_pretrained_one_to_its_start() -> None:
    trainable, _ = build({"name": "l2sp"})
    head = trainable.model.get_submodule("fc")
    wanted = 0.005 * sum(float(p.detach().square().sum()) for p in head.parameters())
    assert trainable.penalty(LABELS).item() == pytest.approx(wanted, rel=1e-6)
    assert wanted > 0
    classes = list("abcdefghij")
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist"},
            "model": {"name": "small_resnet", "head": "pretrained"},
            "method": {"name": "l2sp"},
        }
    )
    kept = build_method(load_backbone(recipe, len(classes)), recipe)
    assert kept.penalty(LABELS).item() == 0
    with torch.no_grad():
        kept.model.head.bias += 1.0  # type: ignore[union-attr,operator]
    assert kept.penalty(LABELS).item() == pytest.approx(0.005 * 10)


def test_start_weights_are_stored_once_and_frozen_layers_have_none() -> None:
    words = {"name": "l2sp", "layers": "layer4"}
    trainable, _ = build(words, ungated="freeze")
    state = trainable.model.state_dict()
    kept = {name for name in state if name.startswith("start_weights.")}
    pulled = [n for n, p in trainable.model.named_parameters() if p.requires_grad and "fc" not in n]
    assert len(kept) == len(pulled) and kept <= frozen_tensor_names(trainable.model)
    assert all(
        torch.equal(a, state[b])
        for a, b in zip(
            [state[f"start_weights.frozen_{i}"] for i in range(len(pulled))], pulled, strict=True
        )
    )


def test_refused_under_zero_3() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist"},
            "model": {"name": "small_resnet"},
            "method": {"name": "l2sp"},
            "engine": {"name": "deepspeed", "zero_stage": 3},
        }
    )
    with pytest.raises(UserError, match=r"^method=l2sp: .* use engine\.zero_stage=2 or less$"):
        build_method(load_backbone(recipe, 10), recipe)
