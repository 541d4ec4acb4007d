"""BatchNorm that moves once a step: the same numbers as torch's, by way of sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.batchnorm import (
    MicroBatchNorm2d,
    MicroBatchNormAct2d,
    replace_batchnorm,
)


def norms(momentum: float | None = 0.1) -> tuple[nn.BatchNorm2d, MicroBatchNorm2d]:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(6, momentum=momentum).double()
    with torch.no_grad():
        for tensor in (plain.weight, plain.bias, plain.running_mean):
            assert tensor is not None
            tensor.normal_()
        assert plain.running_var is not None
        plain.running_var.uniform_(0.5, 2)
    return plain, MicroBatchNorm2d.from_batchnorm(plain)


def batch(seed: int, n: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 4, 3, generator=generator, dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("momentum", [0.1, 0.37, None])
def test_one_micro_batch_a_step_is_torch_batchnorm(momentum: float | None) -> None:
    plain, own = norms(momentum)
    for step in range(3):
        x, y = batch(step).requires_grad_(), batch(step).requires_grad_()
        a, b = plain(x), own(y)
        assert torch.equal(a, b)
        (a**3).sum().backward()
        (b**3).sum().backward()
        assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)
        step_statistics.apply(own, step_statistics.collect(own))
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(own.state_dict()[key], value, rtol=1e-14, atol=0)
    assert torch.equal(plain.eval()(batch(9)), own.eval()(batch(9)))


def test_forward_in_training_touches_nothing_of_the_state() -> None:
    _, own = norms()
    before = copy.deepcopy(own.state_dict())
    own(batch(0))
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())


def test_means_over_micro_batches_move_the_running_statistics_once() -> None:
    plain, own = norms()
    batches = [batch(seed) for seed in range(4)]
    for x in batches:
        own(x)
    flat = step_statistics.collect(own) / len(batches)
    step_statistics.apply(own, flat)
    mean = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in batches]).mean(0)
    assert plain.running_mean is not None and plain.running_var is not None
    torch.testing.assert_close(own.running_mean, 0.9 * plain.running_mean + 0.1 * mean)
    torch.testing.assert_close(own.running_var, 0.9 * plain.running_var + 0.1 * variance)
    assert own.num_batches_tracked == 1
    assert not own.step_sums.any(), "the sums start anew"


def test_reducing_over_two_ranks_equals_one() -> None:
    """Three micro-batches on one rank, or shared out two to one."""
    _, alone = norms()
    first, second = copy.deepcopy(alone), copy.deepcopy(alone)
    for seed, rank in ((0, first), (1, first), (2, second)):
        alone(batch(seed))
        rank(batch(seed))
    flat = (step_statistics.collect(first) + step_statistics.collect(second)) / 3
    step_statistics.apply(alone, step_statistics.collect(alone) / 3)
    for rank in (first, second):
        step_statistics.apply(rank, flat)
        torch.testing.assert_close(rank.state_dict(), alone.state_dict(), rtol=1e-13, atol=0)


def test_what_did_not_run_keeps_its_running_statistics() -> None:
    _, own = norms()
    before = copy.deepcopy(own.state_dict())
    own.eval()(batch(0))
    assert not step_statistics.collect(own).any()
    step_statistics.apply(own, step_statistics.collect(own))
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)


def test_a_module_that_ran_in_half_of_the_micro_batches_takes_their_mean() -> None:
    _, often = norms()
    seldom = copy.deepcopy(often)
    both = nn.ModuleList([often, seldom])
    often(batch(0)), often(batch(1))
    seldom(batch(1))
    step_statistics.apply(both, step_statistics.collect(both) / 2)
    alone = norms()[1]
    alone(batch(1))
    step_statistics.apply(alone, step_statistics.collect(alone))
    torch.testing.assert_close(seldom.state_dict(), alone.state_dict(), rtol=1e-14, atol=0)


def test_many_at_once_move_by_the_same_bits_as_each_alone() -> None:
    def some() -> nn.ModuleList:
        torch.manual_seed(0)
        norms = [MicroBatchNorm2d(c, momentum=0.1 * (c % 3 + 1)) for c in (3, 70, 1, 5)]
        for number, norm in enumerate(norms):
            for _ in range(number):  # the first one does not run
                norm(torch.randn(4, norm.num_features, 3, 3))
        return nn.ModuleList(norms)

    together, alone = some(), some()
    flat = step_statistics.collect(together) / 3
    step_statistics.apply(together, flat)
    for norm, part in zip(alone, flat.split([2 * n.num_features + 1 for n in alone]), strict=True):
        assert isinstance(norm, MicroBatchNorm2d)
        sizes = [norm.num_features, norm.num_features, 1]
        norm.apply_step_statistics(list(part.split(sizes)))
    torch.testing.assert_close(together.state_dict(), alone.state_dict(), rtol=0, atol=0)
    assert [int(norm.num_batches_tracked) for norm in together] == [0, 1, 1, 1]


def test_discard_forgets_a_skipped_step() -> None:
    _, own = norms()
    before = copy.deepcopy(own.state_dict())
    own(batch(0))
    step_statistics.discard(own)
    step_statistics.apply(own, step_statistics.collect(own))
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)


def test_update_statistics_needs_no_counting() -> None:
    _, counted = norms()
    own = copy.deepcopy(counted)
    for model in (counted, own):
        model(batch(0))
        model(batch(1))
    step_statistics.apply(counted, step_statistics.collect(counted) / 2)
    step_statistics.update_statistics(own)
    torch.testing.assert_close(own.state_dict(), counted.state_dict(), rtol=1e-14, atol=0)


def test_a_vector_of_another_length_is_refused() -> None:
    _, own = norms()
    with pytest.raises(ValueError, match="got 3 statistics for a model with 13"):
        step_statistics.apply(own, torch.zeros(3))
    assert step_statistics.collect(nn.Linear(2, 2)).numel() == 0


def test_channels_last_and_bfloat16_gather_in_float32() -> None:
    own = MicroBatchNorm2d(6)
    x = batch(0).float().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = own(x.bfloat16())
    assert y.dtype == torch.bfloat16 and own.step_sums.dtype == torch.float32
    torch.testing.assert_close(own.step_sums[:6], x.bfloat16().float().mean((0, 2, 3)))


def test_no_affine_and_no_running_statistics() -> None:
    for options in ({"affine": False}, {"track_running_stats": False}):
        plain = nn.BatchNorm2d(6, **options)  # type: ignore[arg-type]
        own = MicroBatchNorm2d.from_batchnorm(plain)
        x = batch(0).float()
        assert torch.equal(own(x), plain(x))
        step_statistics.apply(own, step_statistics.collect(own))
        torch.testing.assert_close(own.state_dict(), plain.state_dict())


def test_replacing_keeps_values_mode_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Sequential(nn.BatchNorm2d(6)))
    model[1].weight.requires_grad_(False)
    model[2].eval()
    state = copy.deepcopy(model.state_dict())
    replace_batchnorm(model)
    assert isinstance(model[1], MicroBatchNorm2d) and isinstance(model[2][0], MicroBatchNorm2d)
    assert model[1].training and not model[2][0].training
    assert not model[1].weight.requires_grad and model[1].bias.requires_grad
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_timm_activation_is_kept() -> None:
    layers = pytest.importorskip("timm.layers")
    source = layers.BatchNormAct2d(6, act_layer=nn.SiLU, inplace=False).double()
    own = replace_batchnorm(nn.Sequential(copy.deepcopy(source)))[0]  # type: ignore[index]
    assert isinstance(own, MicroBatchNormAct2d)
    assert torch.equal(own(batch(0)), source(batch(0)))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_other_batchnorms_are_refused_by_name(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Sequential(kind(6)))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=f"0.0 is a {kind.__name__}"):
        replace_batchnorm(model)
