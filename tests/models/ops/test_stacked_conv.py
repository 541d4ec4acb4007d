from __future__ import annotations

import pytest
import torch
from torch import nn

from adafilter_dist.models.ops import device_kind
from adafilter_dist.models.ops.stacked_conv import can_stack, stacked_conv, stacking_is_faster

CASES = [
    {"kernel_size": 1},
    {"kernel_size": 1, "bias": True},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 5), "padding": (2, 1), "dilation": 2, "bias": True},
]


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_two_convolutions(
    case: dict[str, int], on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_kind, "on_gpu", lambda x: on_gpu)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **{"bias": False, **case}, dtype=torch.float64)
    frozen = torch.randn_like(conv.weight)
    frozen_bias = None if conv.bias is None else torch.randn(6, dtype=torch.float64)
    x = torch.randn(3, 4, 9, 11, dtype=torch.float64, requires_grad=True)
    x_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    two = torch.cat((conv(x), conv._conv_forward(x, frozen, frozen_bias)), 1)
    weight = torch.randn_like(two)
    expected = torch.autograd.grad((two * weight).sum(), [x, *conv.parameters()])
    one = stacked_conv(conv, x_last, frozen, frozen_bias)
    given = torch.autograd.grad((one * weight).sum(), [x_last, *conv.parameters()])
    torch.testing.assert_close(one, two)
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("case", [CASES[1], CASES[-1]], ids=str)
def test_gradients_are_those_of_differences(
    case: dict[str, int], on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_kind, "on_gpu", lambda x: on_gpu)
    conv = nn.Conv2d(2, 2, **case, dtype=torch.float64)  # type: ignore[arg-type]
    frozen, frozen_bias = torch.randn_like(conv.weight), torch.randn(2, dtype=torch.float64)
    x = torch.randn(1, 2, 5, 9, dtype=torch.float64, requires_grad=True)

    def stacked(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(("weight", "bias"), parameters, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(conv, named):
            return stacked_conv(conv, x, frozen, frozen_bias)

    assert torch.autograd.gradcheck(stacked, (x, *conv.parameters()), fast_mode=True)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_cpus_of_either_kind(
    case: dict[str, int], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As matrix products, and as convolutions where MKL is slow; float64 always the first."""
    from adafilter_dist.models.ops import stacked_conv as module

    monkeypatch.setattr(module, "_slow_products", lambda: slow)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **{"bias": False, **case})  # type: ignore[arg-type]
    frozen = torch.randn_like(conv.weight)
    frozen_bias = None if conv.bias is None else torch.randn(6)
    x = torch.randn(3, 4, 9, 11).contiguous(memory_format=torch.channels_last).requires_grad_()
    multiplies = module._multiplies(x, conv.weight, conv.stride, conv.padding)
    product = (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
    assert multiplies == (product and not slow)
    assert module._multiplies(x.double(), conv.weight, conv.stride, conv.padding) == product
    two = torch.cat((conv(x), conv._conv_forward(x, frozen, frozen_bias)), 1)
    one = stacked_conv(conv, x, frozen, frozen_bias)
    weight = torch.randn_like(two)
    expected = torch.autograd.grad((two * weight).sum(), [x, *conv.parameters()])
    given = torch.autograd.grad((one * weight).sum(), [x, *conv.parameters()])
    torch.testing.assert_close(one, two)
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # DDP's buckets have the weight's; a layout of one pixel has several.
    assert conv.kernel_size != (1, 1) or given[1].stride() == conv.weight.stride()


@pytest.mark.parametrize("size", [(9, 11), (1, 1)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_matrix_product_in_every_layout(
    size: tuple[int, int], memory: torch.memory_format
) -> None:
    conv = nn.Conv2d(4, 6, 1, bias=False, dtype=torch.float64).to(memory_format=memory)
    frozen = torch.randn_like(conv.weight)
    plain = torch.randn(3, 4, *size, dtype=torch.float64)
    last = plain.contiguous(memory_format=torch.channels_last)
    half = torch.cat((last, last), 1)[:, 4:]
    expected = torch.cat((conv(plain), conv._conv_forward(plain, frozen, None)), 1)
    for x in (plain, last, half):
        y = stacked_conv(conv, x.requires_grad_(), frozen, None)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, expected)
        dx, dweight = torch.autograd.grad(y.sum(), [x, conv.weight])
        assert dweight.stride() == conv.weight.stride()
        rows = plain.detach().sum((0, 2, 3))[None, :, None, None].expand_as(dweight)
        torch.testing.assert_close(dweight, rows)
        both = (conv.weight + frozen).detach().sum(0)[None].expand_as(x)
        torch.testing.assert_close(dx, both)


@pytest.mark.parametrize("slow", [False, True])
def test_where_it_pays_on_a_cpu(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a matrix product, which float32 is not where MKL is slow."""
    from adafilter_dist.models.ops import stacked_conv as module

    monkeypatch.setattr(module, "_slow_products", lambda: slow)
    x = torch.zeros(1, 4, 5, 5)
    assert stacking_is_faster(nn.Conv2d(4, 4, 1), x) is not slow
    assert stacking_is_faster(nn.Conv2d(4, 4, 1), x.double())
    for conv in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1, padding=1)):
        assert not stacking_is_faster(conv, x)
    assert not stacking_is_faster(nn.Conv2d(4, 4, 1), x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not stacking_is_faster(nn.Conv2d(4, 4, 1), x)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_minds_autocast(kernel_size: int) -> None:
    conv = nn.Conv2d(3, 4, kernel_size, bias=False)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = stacked_conv(conv, x, conv.weight.detach().clone(), None)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_leaves_out_what_cannot_be_stacked() -> None:
    assert can_stack(nn.Conv2d(4, 4, 3))
    assert not can_stack(nn.Conv2d(4, 4, 3, groups=2))
    assert not can_stack(nn.Conv2d(4, 4, 3, padding="same"))
    assert not can_stack(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
