"""All ways to convolve by chosen filters compute the same, whatever the shape."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.inference import choose_kernel
from adafilter_dist.models.inference.choose_kernel import (
    Epilogue,
    choose,
    convolve,
    each,
    each_is_cheaper,
    same_filters_for_all,
    union,
)
from adafilter_dist.models.inference.filter_table import FilterTable
from adafilter_dist.models.inference.fold_batchnorm import BareConv


@dataclass
class Case:
    """A convolution, pictures, a table of two filters a channel, and a choice for each picture."""

    conv: nn.Conv2d
    x: Tensor
    rows: Tensor
    bias: Tensor
    bits: Tensor

    def __post_init__(self) -> None:
        filters = torch.arange(self.conv.out_channels)
        self.table = FilterTable(self.rows, self.bias, filters, filters + len(filters))

    @property
    def chosen(self) -> Tensor:
        return self.table.chosen(self.bits)

    def wanted(self) -> Tensor:
        """Picture by picture with torch's own convolution."""
        conv = self.conv
        made = [
            F.conv2d(
                image[None],
                self.rows[own].permute(0, 3, 1, 2),
                self.bias[own],
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.groups,
            )
            for image, own in zip(self.x, self.chosen, strict=True)
        ]
        return torch.cat(made)


def case(
    images: int = 3,
    size: tuple[int, int] = (9, 7),
    channels: tuple[int, int] = (4, 8),
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    layout: torch.memory_format = torch.channels_last,
    dtype: torch.dtype = torch.float64,
    tuned: float = 0.5,
) -> Case:
    """``tuned`` is the share of tuned choices; channel 0 is the same for all pictures."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    conv = nn.Conv2d(*channels, kernel, stride, padding, dilation, groups)
    filters = channels[1]
    bits = torch.rand(images, filters, generator=generator) < tuned
    bits[:, 0] = True
    return Case(
        conv,
        noise(images, channels[0], *size).contiguous(memory_format=layout),
        noise(2 * filters, *conv.kernel_size, channels[0] // groups),
        noise(2 * filters),
        bits,
    )


SHAPES: list[dict[str, object]] = [
    {},
    {"kernel": 1},
    {"kernel": 1, "stride": 2},
    {"images": 1},
    {"images": 1, "kernel": 1, "size": (1, 1)},
    {"kernel": (1, 5), "padding": (0, 2), "size": (11, 13)},
    {"kernel": (5, 2), "stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)},
    {"dilation": (2, 3), "padding": (1, 3), "size": (12, 10)},
    {"channels": (1, 1), "kernel": 2},
    {"channels": (3, 70), "kernel": 7, "stride": 2, "padding": 3, "size": (19, 21)},
    {"channels": (150, 65), "kernel": 3, "padding": 1, "size": (5, 5), "images": 4},
    {"channels": (300, 129), "kernel": 1, "size": (5, 5), "images": 2},
    {"images": 6, "size": (14, 15)},
    {"layout": torch.contiguous_format},
    {"groups": 2},
    {"groups": 4, "channels": (4, 4), "padding": 1},
    {"groups": 4, "channels": (4, 12), "stride": 2, "layout": torch.contiguous_format},
    {"groups": 2, "size": (23, 25)},
    {"groups": 4, "channels": (4, 4), "size": (23, 25)},
    {"tuned": 0.0},
    {"tuned": 1.0},
    {"tuned": 0.1, "images": 5},
    {"tuned": 0.0, "images": 1, "groups": 2},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chosen_filters(shape: dict[str, object], dtype: torch.dtype) -> None:
    given = case(**shape, dtype=dtype)  # type: ignore[arg-type]
    y = choose(BareConv(given.conv), given.x, given.table, given.bits)
    exact = dtype == torch.float64
    tolerance = {"rtol": 1e-12, "atol": 1e-11} if exact else {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(y, given.wanted(), **tolerance)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_stands_behind(shape: dict[str, object], relu: bool) -> None:
    """A residual like y, one of another dtype, one that is broadcast, and none."""
    given = case(**shape, dtype=torch.float32)  # type: ignore[arg-type]
    wanted, generator = given.wanted(), torch.Generator().manual_seed(1)
    noise = torch.randn(wanted.shape, generator=generator) * wanted.abs().mean()
    last = noise.contiguous(memory_format=torch.channels_last)
    for residual in (last, noise.contiguous(), last.double(), last[:, :1, :1, :1], None):
        y = choose(
            *(BareConv(given.conv), given.x, given.table, given.bits),
            Epilogue(residual, relu),
        )
        whole = wanted if residual is None else wanted + residual
        whole = whole.relu() if relu else whole
        torch.testing.assert_close(y.to(whole.dtype), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("images", [1, 3])
def test_a_relu_keeps_what_is_no_number(images: int) -> None:
    given = case(images, (12, 12), dtype=torch.float32)
    given.x[-1, :, :, 0] = float("nan")
    conv = BareConv(given.conv)
    y = choose(*(conv, given.x, given.table, given.bits), Epilogue(relu=True))
    assert torch.equal(y.isnan(), given.wanted().isnan()) and bool(y.isnan().any())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_each_way_alone(groups: int, share: float) -> None:
    given = case(5, groups=groups, tuned=share)
    conv, chosen = BareConv(given.conv), given.chosen
    y = each(conv, given.x, given.table, chosen)
    torch.testing.assert_close(y, given.wanted())
    mixed = (chosen != chosen[0]).any(0).nonzero().flatten()
    assert 0 < len(mixed) < 8
    mixed = mixed if groups == 1 else torch.arange(8)
    y = union(conv, given.x, given.table, chosen, mixed)
    torch.testing.assert_close(y, given.wanted())


def test_union_where_all_filters_are_mixed() -> None:
    given = case(4)
    given.bits[1] = ~given.bits[0]
    conv, every = BareConv(given.conv), torch.arange(8)
    y = union(conv, given.x, given.table, given.chosen, every)
    torch.testing.assert_close(y, given.wanted())


def test_few_pixels_are_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(1, stride=2, padding=1, dilation=2)
    conv = BareConv(given.conv)
    rows, bias = given.rows[given.chosen[0]], given.bias[given.chosen[0]]
    made: list[Tensor] = []
    for limit in (10_000, 0):
        monkeypatch.setattr(choose_kernel, "FEW_PIXELS", limit)
        made.append(convolve(conv, given.x, rows, bias))
    assert made[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made[0], given.wanted())
    torch.testing.assert_close(made[1], given.wanted())


@pytest.mark.parametrize("size", [(5, 5), (12, 12), (30, 30)])
def test_rows_as_they_lie_give_the_bits_of_the_same_rows_picked(size: tuple[int, int]) -> None:
    given = case(1, size, padding=1, dtype=torch.float32)
    conv, own = BareConv(given.conv), given.chosen[0]
    gather = choose(conv, given.x, given.table, given.bits)
    numbers = torch.arange(8)
    settled = FilterTable(given.rows[own], given.bias[own], numbers, numbers)
    lying = same_filters_for_all(conv, given.x, settled, None, None)
    assert torch.equal(gather, lying)
    torch.testing.assert_close(gather, given.wanted(), rtol=1e-4, atol=1e-4)


def test_the_cheaper_way_follows_pixels_and_mixed_filters() -> None:
    assert each_is_cheaper(pixels=80 * 80, mixed=0.5)
    assert not each_is_cheaper(pixels=80 * 80, mixed=0.01)
    assert not each_is_cheaper(pixels=5 * 5, mixed=1.0)


def test_no_images() -> None:
    given = case(0)
    y = choose(BareConv(given.conv), given.x, given.table, given.bits)
    assert y.shape == (0, 8, 7, 5)


@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_of_the_pictures(groups: int) -> None:
    given = case(3, groups=groups)
    conv = BareConv(given.conv)
    x = given.x.clone().requires_grad_()
    y = choose(conv, x, given.table, given.bits)
    choose(conv, x, given.table, given.bits.flip(0))
    y.square().sum().backward()
    found = x.grad
    given.x.requires_grad_()
    given.wanted().square().sum().backward()
    assert found is not None and given.x.grad is not None
    torch.testing.assert_close(found, given.x.grad)
