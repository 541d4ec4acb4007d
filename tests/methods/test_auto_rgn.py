"""Auto-RGN: rates against ratios of norms, and when they are measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from adafilter_dist.engine.optimizer import build_optimizer
from adafilter_dist.methods import TrainableModel
from adafilter_dist.methods.auto_rgn import scaled
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.recipe.sections.training import Optim
from tests.methods.test_methods import build

BASE = {"trunk": 0.1, "head": 0.3}


def named(trainable: TrainableModel) -> dict[str, nn.Parameter]:
    return {name: p for name, p in trainable.model.named_parameters() if p.requires_grad}


def backward(trainable: TrainableModel, seed: int) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    images = images.to(next(trainable.model.parameters()).dtype)
    trainable.model.zero_grad()
    loss = nn.functional.cross_entropy(trainable.model.train()(images), torch.arange(4))
    loss.backward()
    step_statistics.discard(trainable.model)


def ratios(trainable: TrainableModel) -> dict[str, float]:
    """Relative gradient norms of weight and bias together, by NumPy."""
    found = {}
    for path, module in trainable.model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if own:
            gradients = np.concatenate([p.grad.numpy().ravel() for p in own if p.grad is not None])
            weights = np.concatenate([p.detach().numpy().ravel() for p in own])
            found[path] = float(np.linalg.norm(gradients) / np.linalg.norm(weights))
    return found


@pytest.mark.parametrize("scaling", ["max", "min_max"])
def test_each_update_is_plain_sgd_at_the_scaled_rate(scaling: str) -> None:
    trainable, recipe = build({"name": "auto_rgn", "scaling": scaling}, "timm/test_resnet")
    trainable.model.double()
    optimizer = build_optimizer(trainable.groups, Optim(momentum=0.0), trainable.rule)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert trainable.rule is not None
    factors: dict[str, float] = {}
    for step, epoch in enumerate([0, 0, 1]):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # as an engine does in every step
        backward(trainable, step)
        before = {name: p.detach().clone() for name, p in named(trainable).items()}
        if step in (0, 2):  # the first steps of their epochs
            found = ratios(trainable)
            lower = min(found.values()) if scaling == "min_max" else 0.0
            upper = max(found.values())
            factors = {name: (one - lower) / (upper - lower) for name, one in found.items()}
            assert max(factors.values()) == 1 and min(factors.values()) < 0.1
        trainable.rule.begin(epoch)
        optimizer.step()
        for name, parameter in named(trainable).items():
            base = BASE["head" if name.startswith(f"{trainable.classifier}.") else "trunk"]
            decay = recipe.optim.weight_decay if parameter.ndim > 1 else 0.0
            assert parameter.grad is not None
            wanted = before[name] - base * factors[name.rpartition(".")[0]] * (
                parameter.grad + decay * before[name]
            )
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-14)


def test_batchnorms_are_not_trained_but_on_request() -> None:
    trainable, _ = build({"name": "auto_rgn"}, "resnet18")
    assert not any("bn" in name or "downsample.1" in name for name in named(trainable))
    backward(trainable, 0)
    trainable.model.train()(torch.randn(4, 3, 32, 32))
    step_statistics.update_statistics(trainable.model)
    assert int(trainable.model.get_buffer("bn1.num_batches_tracked")) == 1
    everything, _ = build({"name": "auto_rgn", "train_batchnorm": True}, "resnet18")
    assert len(named(everything)) == len(named(build({"name": "finetune"}, "resnet18")[0]))


def test_what_has_no_relative_norm_keeps_the_rate() -> None:
    gradients, weights = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([2.0, 0.0, 3.0])
    assert scaled(gradients, weights, from_smallest=False).tolist() == [0.25, 1.0, 1.0]
    assert scaled(gradients, weights, from_smallest=True).tolist() == [0.0, 1.0, 1.0]
    nothing = torch.zeros(3)
    assert scaled(nothing, weights, from_smallest=False).tolist() == [1.0, 1.0, 1.0]
    assert scaled(gradients, nothing, from_smallest=True).tolist() == [1.0, 1.0, 1.0]
