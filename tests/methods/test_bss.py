"""BSS: the penalty against eigenvalues and differences, not against singular values again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.errors import UserError
from adafilter_dist.methods.bss import smallest_singular_values
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from tests.methods.test_methods import build


def by_eigenvalues(features: Tensor, k: int) -> Tensor:
    """Squared singular values are the eigenvalues of the smaller product of the matrix."""
    product = features @ features.T if len(features) < features.shape[1] else features.T @ features
    return torch.linalg.eigvalsh(product.double())[:k].sum()


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_smallest_eigenvalues_and_so_is_its_gradient(
    shape: tuple[int, int], k: int
) -> None:
    features = noise(*shape).requires_grad_()
    penalty = smallest_singular_values(features, k)
    torch.testing.assert_close(penalty, by_eigenvalues(features, k))
    assert torch.autograd.gradcheck(lambda x: smallest_singular_values(x, k), features)


def test_features_of_lower_rank_have_nothing_to_shrink() -> None:
    features = noise(4, 9)
    features[3] = features[2]
    features.requires_grad_()
    penalty = smallest_singular_values(features, 1)
    penalty.backward()
    assert float(penalty.detach()) < 1e-25
    assert features.grad is not None and float(features.grad.abs().max()) < 1e-12


def test_each_micro_batch_of_a_forward_has_its_own() -> None:
    features = noise(8, 5)
    with in_micro_batches(2):
        both = smallest_singular_values(features, 2)
    torch.testing.assert_close(
        both, (by_eigenvalues(features[:4], 2) + by_eigenvalues(features[4:], 2)) / 2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_penalty_of_a_forward_is_that_of_the_classifiers_input(dtype: torch.dtype) -> None:
    trainable, _ = build({"name": "bss", "eta": 0.5, "k": 2}, "resnet18")
    classifier = trainable.model.get_submodule(trainable.classifier)
    seen: list[Tensor] = []
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        trainable.model.train()(images)
    penalty = trainable.penalty(torch.zeros(6, dtype=torch.int64))
    assert penalty.ndim == 0 and penalty.dtype == torch.float32
    # Eigenvalues lose half of the digits.
    torch.testing.assert_close(
        penalty.double(), 0.5 * by_eigenvalues(seen[0].double(), 2), rtol=1e-4, atol=1e-6
    )
    penalty.backward()
    first = trainable.model.get_parameter("conv1.weight").grad
    assert first is not None and float(first.abs().max()) > 0


def test_more_singular_values_than_there_are_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^method\.k=33: .*have 32 singular values.*1 to 32$"):
        build({"name": "bss", "k": 33})
