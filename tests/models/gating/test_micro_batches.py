"""What is taken over the samples of a forward, taken in each of its micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafilter_dist.models.gating import micro_batches, step_statistics
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.estimators import binarise
from adafilter_dist.models.gating.micro_batches import in_micro_batches


def norm(**options: bool) -> MicroBatchNorm2d:
    module = MicroBatchNorm2d(6, **options).double()  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return module


def batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 6, 4, 3, generator=generator, dtype=torch.float64)
    # Micro-batches of 4 that are far apart.
    return x + torch.arange(12).div(4, rounding_mode="floor").view(12, 1, 1, 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batchnorm_normalises_each_micro_batch_by_itself(layout: torch.memory_format) -> None:
    together, apart = norm(), norm()
    x, y = (batch().to(memory_format=layout).requires_grad_() for _ in range(2))
    with in_micro_batches(3):
        found = together(x)
    wanted = torch.cat([apart(part) for part in y.split(4)])
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=layout)
    (found**3).sum().backward()
    (wanted**3).sum().backward()
    assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)
    torch.testing.assert_close(together.weight.grad, apart.weight.grad, rtol=1e-12, atol=0)
    assert torch.equal(step_statistics.collect(together), step_statistics.collect(apart))
    assert together.step_sums[-1] == 3


def test_batchnorm_without_running_statistics_too() -> None:
    module = norm(track_running_stats=False)
    with in_micro_batches(3):
        found = module(batch())
    assert torch.equal(found, torch.cat([module(part) for part in batch().split(4)]))


def test_evaluation_knows_no_micro_batches() -> None:
    module = norm().eval()
    with in_micro_batches(5):  # 12 samples are not 5 equal parts
        assert torch.equal(module(batch()), norm().eval()(batch()))
        with pytest.raises(ValueError, match="12 samples are not 5 equal micro-batches"):
            module.train()(batch())


@pytest.mark.parametrize("kind", ["gumbel", "semhash"])
def test_noise_is_that_of_forwards_of_their_own(kind: str) -> None:
    logits = batch()[:, :, 0, 0]
    apart = []
    for number, part in enumerate(logits.split(4)):
        torch.manual_seed(number)
        apart += [torch.cat([binarise(part, kind, 1.0, True) for _ in range(2)], 1)]
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    with in_micro_batches(3, generators):
        found = torch.cat([binarise(logits, kind, 1.0, True) for _ in range(2)], 1)
    assert torch.equal(found, torch.cat(apart))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_was_before_is_put_back() -> None:
    with pytest.raises(RuntimeError), in_micro_batches(4):
        with in_micro_batches(2):
            assert micro_batches.current.count == 2
        assert micro_batches.current.count == 4
        raise RuntimeError
    assert micro_batches.current.count == 1
