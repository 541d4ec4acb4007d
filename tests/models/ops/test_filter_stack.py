"""Filters of all layers, stacked in one operation a forward."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adafilter_dist.models.ops import device_kind
from adafilter_dist.models.ops.filter_stack import FilterStack
from adafilter_dist.models.ops.stacked_conv import compute_dtype, stacked_conv

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_kind, "on_gpu", lambda x: True)


def layers() -> list[tuple[nn.Conv2d, Tensor]]:
    convs = [nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1, bias=False)]
    for conv in convs:
        conv.to(memory_format=torch.channels_last)
    return [(conv, torch.randn_like(conv.weight)) for conv in convs]


def stacked(stack: FilterStack, of: list[tuple[nn.Conv2d, Tensor]], x: Tensor) -> list[Tensor]:
    found = [
        stack.of(i, conv.weight, fixed, compute_dtype(x)) for i, (conv, fixed) in enumerate(of)
    ]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def learned(of: list[tuple[nn.Conv2d, Tensor]], x: Tensor) -> FilterStack:
    """A stack that knows all layers, and has the filters of now."""
    stack = FilterStack()
    stack.refresh(CPU)
    assert all(stack.of(i, c.weight, f, compute_dtype(x)) is None for i, (c, f) in enumerate(of))
    stack.refresh(CPU)
    return stack


@pytest.mark.parametrize("autocast", [False, True])
def test_has_the_filters_of_each_forward(autocast: bool) -> None:
    of, x = layers(), torch.zeros(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        stack = learned(of, x)
        for _ in range(2):
            for (conv, fixed), both in zip(of, stacked(stack, of, x), strict=True):
                assert torch.equal(both, torch.cat((conv.weight, fixed)).to(compute_dtype(x)))
                assert both.stride() == torch.cat((conv.weight, fixed)).stride()
            with torch.no_grad():
                for conv, fixed in of:
                    conv.weight.add_(1)
                    fixed.mul_(2)
            stack.forget()
            assert stack.of(0, of[0][0].weight, of[0][1], compute_dtype(x)) is None
            stack.refresh(CPU)


def test_only_for_the_tensors_it_copied() -> None:
    of, x = layers(), torch.zeros(1)
    stack = learned(of, x)
    (conv, fixed), _ = of
    assert stack.of(0, conv.weight, fixed, torch.bfloat16) is None
    for copied in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        copied.refresh(CPU)
        assert copied.of(1, conv.weight, fixed, torch.float32) is None
    # A layer that was replaced is learned anew.
    assert stack.of(0, conv.weight, fixed.clone(), torch.float32) is None


def test_backward_after_another_forward_has_the_same_gradients() -> None:
    of = layers()
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    stack = learned(of, x)
    (conv, fixed), _ = of
    parameters = [x, conv.weight]
    dy = torch.randn(2, 8, 4, 4)
    wanted = torch.autograd.grad(stacked_conv(conv, x, fixed, None), parameters, dy)
    y = stacked_conv(conv, x, fixed, None, stacked(stack, of, x)[0])
    stack.refresh(CPU)
    for one, other in zip(torch.autograd.grad(y, parameters, dy), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_under_autocast_filters_are_not_cast_again(kernel_size: int) -> None:
    conv = nn.Conv2d(3, 4, kernel_size, bias=False).to(memory_format=torch.channels_last)
    fixed = torch.randn_like(conv.weight)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        stack = learned([(conv, fixed)], x)
        for filters in (None, stacked(stack, [(conv, fixed)], x)[0]):
            y = stacked_conv(conv, x, fixed, None, filters)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, conv.weight])])
    assert results[0][0].dtype == torch.bfloat16 and results[1][2].dtype == torch.float32
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_backward_after_an_update_is_an_error_as_in_torch() -> None:
    of = layers()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    stack = learned(of, x)
    y = stacked_conv(of[0][0], x, of[0][1], None, stacked(stack, of, x)[0])
    with torch.no_grad():
        of[0][0].weight.add_(1)
    stack.refresh(CPU)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_memory_that_a_recording_may_use_is_kept() -> None:
    of, x = layers(), torch.zeros(1)
    stack = learned(of, x)
    first = [each.data_ptr() for each in stacked(stack, of, x)]
    with torch.autocast("cpu", torch.bfloat16):
        stack.refresh(CPU)
        other = [each.data_ptr() for each in stacked(stack, of, x)]
    assert not set(first) & set(other)
    with torch.no_grad():
        of[0][0].weight.add_(1)
    stack.refresh(CPU)
    again = stacked(stack, of, x)
    assert [each.data_ptr() for each in again] == first
    assert torch.equal(again[0], torch.cat((of[0][0].weight, of[0][1])))


class Copies(TorchDispatchMode):
    """Large tensors that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if any(word in function._schema.name for word in ("clone", "copy", "contiguous", "cat")):
            self.names.append(function._schema.name)
        return result


def test_half_of_a_gradient_is_not_copied_for_a_matrix_product() -> None:
    """cuDNN would copy the half that belongs to the trained filters; a product need not."""
    from adafilter_dist.models.ops.stacked_conv import _gradients

    conv = nn.Conv2d(8, 6, 1, bias=False).to(memory_format=torch.channels_last)
    x, dy = (
        torch.randn(2, width, 5, 7).contiguous(memory_format=torch.channels_last)
        for width in (8, 12)
    )
    products: list[Tensor] = []

    class Products(Copies):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function._schema.name == "aten::mm":
                products.extend(args)
            return super().__torch_dispatch__(function, types, args, kwargs)

    with Products() as copies:
        both = torch.empty(12, 8, 1, 1)
        _gradients(dy, x, conv.weight, both, [1, 1], [0, 0], [1, 1], [False, True, False])
    assert not copies.names
    own, rows = products
    assert own.data_ptr() == dy.data_ptr() and own.stride() == (1, 12)
    assert rows.data_ptr() == x.data_ptr()
