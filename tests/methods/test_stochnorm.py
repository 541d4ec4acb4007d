"""StochNorm: a normalisation written out for each channel, with the coins drawn again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d, MicroBatchNormAct2d
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from adafilter_dist.models.gating.random_modules import find_random_modules
from adafilter_dist.models.gating.stochnorm import StochNorm2d
from adafilter_dist.training.seeding import seeded_draws
from tests.methods.test_methods import build

CHANNELS = 64
CPU = torch.device("cpu")


def norm(p: float) -> StochNorm2d:
    torch.manual_seed(0)
    source = StochNorm2d(CHANNELS).double()
    source.p = p
    with torch.no_grad():
        for tensor in (source.weight, source.bias, source.running_mean):
            assert tensor is not None
            tensor.normal_()
        assert source.running_var is not None
        source.running_var.uniform_(0.5, 2)
    return source


def batch(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, CHANNELS, 4, 3, generator=generator, dtype=torch.float64) * 3 + 1


def written_out(norm: StochNorm2d, x: Tensor, batch_statistics: Tensor) -> Tensor:
    """Channel by channel, each by the statistics that its coin names."""
    channels = []
    for c, by_batch in enumerate(batch_statistics.tolist()):
        values = x[:, c]
        mean, var = norm.get_buffer("running_mean")[c], norm.get_buffer("running_var")[c]
        if by_batch:
            mean = values.mean()
            var = (values - mean).square().mean()
        channels.append((values - mean) / (var + norm.eps).sqrt() * norm.weight[c] + norm.bias[c])
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_each_channel_is_normalised_as_its_coin_says(p: float) -> None:
    own, other = norm(p), norm(p)
    x, y = batch(5).requires_grad_(), batch(5).requires_grad_()
    with seeded_draws(1, 7, [2], CPU):
        coins = torch.rand(1, CHANNELS, dtype=torch.float64)[0] < p
    with seeded_draws(1, 7, [2], CPU):
        z = own(x)
    wanted = written_out(other, y, coins)
    torch.testing.assert_close(z, wanted)
    (z**3).sum().backward()
    (wanted**3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(own.weight.grad, other.weight.grad)
    torch.testing.assert_close(own.bias.grad, other.bias.grad)
    assert coins.double().mean().sub(p).abs() < 0.15, "p is the share of the micro-batch's"


def test_micro_batches_of_one_forward_have_the_coins_of_their_own() -> None:
    one, both = norm(0.5), norm(0.5)
    x = batch(10)
    apart = []
    for number, part in enumerate(x.split(5)):
        with seeded_draws(3, 1, [number], CPU):
            apart.append(one(part))
    with seeded_draws(3, 1, [0, 1], CPU):
        together = both(x)
    assert torch.equal(together, torch.cat(apart))
    with seeded_draws(3, 2, [0, 1], CPU):
        assert not torch.equal(both(x), together), "another step, other coins"
    one(x[:5])
    one(x[5:])
    for each in (one, both):
        step_statistics.apply(each, step_statistics.collect(each))
    assert torch.equal(one.get_buffer("running_var"), both.get_buffer("running_var"))


def test_running_statistics_move_as_those_of_a_batchnorm_whatever_the_coins() -> None:
    own = norm(0.5)
    plain = MicroBatchNorm2d.from_batchnorm(own)
    assert type(plain) is MicroBatchNorm2d
    for each in (own, plain):
        each(batch(5))
        step_statistics.apply(each, step_statistics.collect(each))
    for key, value in plain.state_dict().items():
        assert torch.equal(own.state_dict()[key], value), key
    assert torch.equal(own.eval()(batch(4)), plain.eval()(batch(4)))


def kinds(trainable: TrainableModel) -> set[type[nn.Module]]:
    return {type(m) for m in trainable.model.modules() if isinstance(m, nn.BatchNorm2d)}


def test_every_trained_batchnorm_has_coins_and_frozen_ones_compute_as_in_evaluation() -> None:
    assert kinds(build({"name": "stochnorm"})[0]) == {StochNorm2d}
    some, _ = build({"name": "stochnorm", "p": 0.25, "layers": "layer4"}, ungated="freeze")
    coins = {n for n, m in some.model.named_modules() if isinstance(m, StochNorm2d)}
    assert coins and all(name.startswith("layer4.") for name in coins)
    assert kinds(some) == {StochNorm2d, MicroBatchNorm2d}
    assert {m.p for m in some.model.modules() if isinstance(m, StochNorm2d)} == {0.25}


def test_timms_batchnorm_keeps_its_activation() -> None:
    trainable, _ = build({"name": "stochnorm", "p": 1.0}, "timm/test_efficientnet")
    plain, _ = build({"name": "finetune"}, "timm/test_efficientnet")
    assert any(issubclass(kind, MicroBatchNormAct2d) for kind in kinds(trainable))
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(trainable.model.train()(x), plain.model.train()(x)), "p=1 is a BatchNorm"
    never, _ = build({"name": "stochnorm", "p": 0.0}, "timm/test_efficientnet")
    torch.testing.assert_close(never.model.train()(x), plain.model.eval()(x))


def test_its_coins_are_no_hindrance_to_several_micro_batches_in_a_forward() -> None:
    trainable, _ = build({"name": "stochnorm"}, "timm/test_efficientnet")
    assert find_random_modules(trainable.model, 32) == []
    with in_micro_batches(2), pytest.raises(ValueError, match="not 2 equal micro-batches"):
        trainable.model.train()(torch.randn(3, 3, 32, 32))


def test_bf16_normalises_by_the_same_coins() -> None:
    own = norm(0.5).float()
    x = batch(6).float()
    with seeded_draws(0, 0, [0], CPU):
        full = own(x)
    with seeded_draws(0, 0, [0], CPU):
        half = own(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)
