"""BatchNorm by choosers: its statistics, what it keeps of them, and whole networks that use it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import constant, override_gates
from adafilter_dist.models.gating.gated_conv import fix_statistics, set_kernels
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from adafilter_dist.models.gating.selected_batchnorm import SelectedBatchNorm2d, rate_factor
from adafilter_dist.models.ops import passes_cpu
from tests.models.networks import images, pairs

C = 6


def norm(kind: type[MicroBatchNorm2d] = SelectedBatchNorm2d) -> MicroBatchNorm2d:
    torch.manual_seed(0)
    own = kind(C).double()
    with torch.no_grad():
        for tensor in (own.weight, own.bias, own.running_mean):
            assert tensor is not None
            tensor.normal_()
        assert own.running_var is not None
        own.running_var.uniform_(0.5, 2)
    return own


def batch(seed: int, n: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, C, 4, 3, generator=draw, dtype=torch.float64) * 3 + 1


def bits(seed: int, n: int = 5) -> Tensor:
    """Of filter 0 nobody's, of filter 1 everybody's, of filter 2 one image's."""
    draw = torch.Generator().manual_seed(seed + 100)
    gates = (torch.rand(n, C, generator=draw) > 0.5).double()
    gates[:, 0], gates[:, 1] = 0, 1
    gates[:, 2] = torch.eye(n, dtype=torch.float64)[0]
    return gates


def step(own: nn.Module) -> None:
    step_statistics.update_statistics(own)


def test_where_all_choose_it_is_batchnorm_and_moves_by_the_same_bits() -> None:
    plain, own = norm(MicroBatchNorm2d), norm()
    for seed in range(3):
        for part in (batch(seed), batch(seed + 50)):
            x, y = part.clone().requires_grad_(), part.clone().requires_grad_()
            # Fused, both take the same code.
            a, b = (
                plain.norm_of(x, passes_cpu, bits(0)),
                own.norm_of(y, passes_cpu, torch.ones(5, C)),
            )
            assert torch.equal(a.mean, b.mean) and torch.equal(a.var, b.var)
        step(plain), step(own)
        torch.testing.assert_close(own.state_dict(), plain.state_dict(), rtol=0, atol=0)
    x, y = batch(7).requires_grad_(), batch(7).requires_grad_()
    a, b = plain(x), own(y, torch.ones(5, C, dtype=torch.float64))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    (a**3).sum().backward(), (b**3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)


def test_where_nobody_chooses_it_is_the_running_statistics_and_these_stay() -> None:
    own = norm()
    before = copy.deepcopy(own.state_dict())
    y = own(batch(0), torch.zeros(5, C, dtype=torch.float64))
    step(own)
    before["num_batches_tracked"] += 1
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(y, own.eval()(batch(0)), rtol=1e-12, atol=1e-12)


def test_running_statistics_move_to_those_of_all_choosers_by_their_share() -> None:
    own = norm()
    running_mean, running_var = own.state_dict()["running_mean"], own.state_dict()["running_var"]
    wanted_mean, wanted_var = running_mean.clone(), running_var.clone()
    parts = [(batch(seed), bits(seed)) for seed in range(3)]
    for x, gates in parts:
        own(x, gates)
    step(own)
    # Filter by filter, over the pixels of the images that chose it.
    for c in range(C):
        of = [(x[gates[:, c] == 1, c].flatten(), gates[:, c].sum()) for x, gates in parts]
        total = sum(float(count) for _, count in of)
        if total == 0:
            continue
        rate = 0.1 * min(1.0, 4 * total / 15)
        mean = sum(float(x.mean() * n) for x, n in of if n) / total
        var = sum(float(x.var() * n) for x, n in of if n) / total
        wanted_mean[c] += rate * (mean - wanted_mean[c])
        wanted_var[c] += rate * (var - wanted_var[c])
    after = own.state_dict()
    torch.testing.assert_close(after["running_mean"], wanted_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after["running_var"], wanted_var, rtol=1e-12, atol=1e-12)
    assert after["running_mean"][0] == running_mean[0] and not own.step_sums.any()


def test_the_rate_is_full_from_a_quarter_on() -> None:
    shares = torch.tensor([0.0, 0.125, 0.25, 1.0])
    assert rate_factor(shares).tolist() == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("shares", [(1, 3), (2, 2), (4,)])
def test_ranks_with_uneven_shares_move_as_one(shares: tuple[int, ...]) -> None:
    """Some of them hold filters that only the others' images chose."""
    alone, ranks = norm(), [norm() for _ in shares]
    parts = [(batch(seed), bits(seed) * (seed > 0)) for seed in range(4)]
    for x, gates in parts:
        alone(x, gates)
    left = iter(parts)
    for rank, share in zip(ranks, shares, strict=True):
        for _ in range(share):
            rank(*next(left))
    flat = sum((step_statistics.collect(rank) for rank in ranks), torch.zeros(3 * C + 1)) / 4
    step(alone)
    for rank in ranks:
        step_statistics.apply(rank, flat)
        torch.testing.assert_close(rank.state_dict(), alone.state_dict(), rtol=1e-12, atol=1e-12)


def test_many_at_once_move_by_the_same_bits_as_each_alone() -> None:
    def some() -> nn.ModuleList:
        torch.manual_seed(0)
        norms = [SelectedBatchNorm2d(c, momentum=0.1 * (c % 3 + 1)) for c in (3, 70, 1, 5)]
        for number, each in enumerate(norms):
            for _ in range(number):  # the first one does not run
                gates = (torch.rand(4, each.num_features) > 0.7).float()
                each(torch.randn(4, each.num_features, 3, 3), gates)
        return nn.ModuleList([*norms, MicroBatchNorm2d(2)])

    together, alone = some(), some()
    flat = step_statistics.collect(together) / 3
    step_statistics.apply(together, flat)
    sizes = [len(step_statistics.collect(each)) for each in alone]
    for each, part in zip(alone, flat.split(sizes), strict=True):
        assert isinstance(each, MicroBatchNorm2d)
        each.apply_step_statistics([*part[:-1].split(each.num_features), part[-1:]])
    torch.testing.assert_close(together.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_a_skipped_step_leaves_no_trace() -> None:
    own = norm()
    before = copy.deepcopy(own.state_dict())
    own(batch(0), bits(0))
    step_statistics.discard(own)
    step(own)
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)


def test_states_of_plain_batchnorm_load_and_the_other_way_round() -> None:
    plain, own = nn.BatchNorm2d(C).double(), norm()
    plain.load_state_dict(own.state_dict())
    own.load_state_dict(plain.state_dict())


def moved(dtype: torch.dtype = torch.float64) -> AdaFilterNet:
    """Its branches differ, as after training, and so do its gates from image to image."""
    net = convert(pairs(), size=16)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in net.gated_layers.values():
            layer.conv.weight += 0.3 * torch.randn_like(layer.conv.weight) * layer.conv.weight.std()
            for each in (layer.bn1, layer.bn2):
                each.weight.uniform_(0.5, 1.5)
                each.bias.normal_()
    return net.to(dtype).train()


def gradients(net: AdaFilterNet, x: Tensor, *, bf16: bool = False) -> list[Tensor]:
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(x)
    (logits.float() if bf16 else logits).square().sum().backward()
    grads = [p.grad for p in net.backbone.parameters() if p.grad is not None]
    step(net)
    return [
        logits.detach(),
        *grads,
        *(b for k, b in net.backbone.named_buffers() if "running" in k),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_training_is_that_of_plain_modules(dtype: torch.dtype) -> None:
    bf16 = dtype == torch.bfloat16
    wide = torch.float32 if bf16 else dtype
    fused = moved(wide)
    reference = copy.deepcopy(fused)
    set_kernels(reference, "reference")
    x = images(6, 16, wide)

    # Gates that rounding cannot flip, with filters that nobody chose, one image, and everybody.
    def gates(index: int, like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(index)) > 0.5
        drawn[:, 0], drawn[:, 1] = False, True
        drawn[:, 2] = torch.arange(len(like)) == 0
        return drawn.to(like)

    results = []
    for net in (fused, reference):
        with override_gates(net, gates):
            results.append(gradients(net, x, bf16=bf16))
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for one, other in zip(*results, strict=True):
        apart = float((one - other).norm() / (1e-6 + other.norm()))
        assert apart < tolerance


def test_several_micro_batches_in_a_forward_are_those_of_forwards_of_their_own() -> None:
    for kernels in ("auto", "reference"):
        together = moved()
        set_kernels(together, kernels)  # type: ignore[arg-type]
        apart = copy.deepcopy(together)
        x = images(6, 16)
        with in_micro_batches(3):
            one = together(x)
        other = torch.cat([apart(part) for part in x.split(2)])
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        sums = step_statistics.collect(together), step_statistics.collect(apart)
        torch.testing.assert_close(*sums, rtol=1e-12, atol=1e-12)


def test_fixed_statistics_win_for_their_branch() -> None:
    net = moved()
    fix_statistics(net, "frozen")
    before = copy.deepcopy(net.state_dict())
    net(images(4, 16))
    step(net)
    for name in net.gated_layers:
        for branch, moves in (("bn1", True), ("bn2", False)):
            key = f"backbone.{name}.{branch}.running_mean"
            assert torch.equal(net.state_dict()[key], before[key]) != moves


@pytest.mark.parametrize("tuned", [0.0, 1.0])
def test_what_a_branch_makes_of_images_that_never_chose_it_does_not_reach_it(tuned: float) -> None:
    """Its running statistics stay as they were pre-trained."""
    net = moved()
    before = copy.deepcopy(net.state_dict())
    with override_gates(net, constant(tuned)):
        net(images(4, 16))
        step(net)
    for name in net.gated_layers:
        for branch, chosen in (("bn1", 1.0), ("bn2", 0.0)):
            key = f"backbone.{name}.{branch}.running_mean"
            assert torch.equal(net.state_dict()[key], before[key]) == (tuned != chosen)


def test_all_is_what_it_was() -> None:
    net = convert(pairs(), size=16, batchnorm="all")
    for layer in net.gated_layers.values():
        assert type(layer.bn1) is MicroBatchNorm2d and type(layer.bn2) is MicroBatchNorm2d
    twin = convert(pairs(), size=16)
    twin.load_state_dict(net.state_dict())
    assert list(twin.state_dict()) == list(net.state_dict())
