from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torchvision import models

from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.gating.pooled_means import PooledMeans
from tests.models.networks import images, network


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def test_a_mean_that_is_known_is_not_computed(x: Tensor) -> None:
    means = PooledMeans()
    means.add(x, torch.full((2, 3), 7.0))
    assert torch.equal(means.of(x, torch.float64), torch.full((2, 3), 7.0, dtype=torch.float64))
    means.clear()
    assert torch.equal(means.of(x, torch.float32), x.mean((2, 3)))


def test_another_tensor_has_a_mean_of_its_own(x: Tensor) -> None:
    means = PooledMeans()
    means.add(x, torch.full((2, 3), 7.0))
    for other in (x.clone(), x.view(2, 3, 4, 5)):
        assert torch.equal(means.of(other, torch.float32), x.mean((2, 3)))


def test_who_writes_into_a_tensor_changes_its_mean(x: Tensor) -> None:
    means = PooledMeans()
    means.add(x, torch.full((2, 3), 7.0))
    x.add_(1)
    assert torch.equal(means.of(x, torch.float32), x.mean((2, 3)))


def test_a_tensor_at_the_place_of_one_that_is_gone(x: Tensor) -> None:
    means = PooledMeans()
    means.add(x, torch.full((2, 3), 7.0))
    means._means = {id(other := x.clone()): means._means[id(x)]}
    assert torch.equal(means.of(other, torch.float32), x.mean((2, 3)))


def test_tensors_that_count_no_versions_are_left_out() -> None:
    means = PooledMeans()
    with torch.inference_mode():
        x = torch.ones(2, 3, 4, 5)
        means.add(x, torch.full((2, 3), 7.0))
        assert torch.equal(means.of(x, torch.float32), torch.ones(2, 3))


def test_copies_know_nothing(x: Tensor) -> None:
    means = PooledMeans()
    means.add(x, torch.zeros(2, 3, requires_grad=True) * 2)
    for twin in (copy.deepcopy(means), pickle.loads(pickle.dumps(means))):
        assert torch.equal(twin.of(x, torch.float32), x.mean((2, 3)))


def means_computed(name: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How often the gate read an activation for its mean in a training step, and the layers."""
    net = convert(network(name), size=32)
    set_kernels(net, kernels)  # type: ignore[arg-type]
    counted, of = [], PooledMeans.of

    def count(means: PooledMeans, x: Tensor, dtype: torch.dtype) -> Tensor:
        found = of(means, x, dtype)
        counted.append(found.grad_fn is None or "Mean" in type(found.grad_fn).__name__)
        return found

    monkeypatch.setattr(PooledMeans, "of", count)
    net.train()(images(4)).sum().backward()
    assert not net.gate._means._means
    return sum(counted), len(counted)


def test_in_a_resnet_only_the_pictures_and_what_was_pooled_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The stem reads the pictures; behind its pooling stand the first block's two convolutions.
    assert means_computed("resnet50", "auto", monkeypatch) == (3, 53)


def test_plain_modules_know_no_means(monkeypatch: pytest.MonkeyPatch) -> None:
    assert means_computed("resnet18", "reference", monkeypatch) == (20, 20)


def test_an_inplace_activation_behind_a_layer_is_minded(monkeypatch: pytest.MonkeyPatch) -> None:
    """MobileNetV3's hardswish writes into what the layer gave."""
    assert any(getattr(m, "inplace", False) for m in models.mobilenet_v3_large().modules())
    computed, layers = means_computed("mobilenet_v3_large", "auto", monkeypatch)
    assert layers // 3 < computed <= layers
