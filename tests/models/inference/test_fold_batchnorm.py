"""Folding both BatchNorms into their filters, and which convolutions allow it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.inference.fold_batchnorm import BareConv, fold, foldable
from tests.models.gates import gated


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folded_filters_are_convolution_and_batchnorm(
    groups: int, bias: bool, affine: bool
) -> None:
    conv = nn.Conv2d(4, 8, 3, 2, 1, groups=groups, bias=bias, dtype=torch.float64)
    layer, x = gated(conv, affine=affine), noise(3, 4, 9, 7)
    folded = fold(layer)
    assert folded.weight.shape == (2, 8, 3, 3, 4 // groups) and folded.weight.is_contiguous()
    branches = (layer.frozen(x), layer.tuned(x))
    assert not torch.allclose(*branches)
    for weight, offset, wanted in zip(folded.weight, folded.bias, branches, strict=True):
        y = F.conv2d(x, weight.permute(0, 3, 1, 2), offset, 2, 1, groups=groups)
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


def test_folding_rounds_once() -> None:
    layer = gated(nn.Conv2d(3, 5, 3, dtype=torch.float32))
    rounded, exact = fold(layer), fold(layer.double())
    assert rounded.weight.dtype == torch.float32
    assert torch.equal(rounded.weight, exact.weight.float())
    assert torch.equal(rounded.bias, exact.bias.float())


CASES = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(1, 2)),
    nn.Conv2d(4, 4, 3, padding=(2, 0), padding_mode="reflect", groups=2),
    nn.Conv2d(3, 4, 3, padding="valid", stride=(2, 1)),
]


@pytest.mark.parametrize("conv", CASES, ids=str)
def test_a_bare_convolution_computes_what_its_source_does(conv: nn.Conv2d) -> None:
    conv = conv.double()
    bare, x = BareConv(conv), noise(2, conv.in_channels, 8, 9)
    assert conv.bias is not None
    assert not list(bare.parameters()) and not list(bare.buffers())
    wanted = conv(x)
    y = bare(x, conv.weight, conv.bias)
    torch.testing.assert_close(y, wanted)
    if bare.plain:
        assert bare.output_size(x) == tuple(y.shape[2:])
    # More filters than the source had, as many as are needed.
    if conv.groups == 1:
        twice = bare(x, conv.weight.repeat(2, 1, 1, 1), conv.bias.repeat(2))
        torch.testing.assert_close(twice, wanted.repeat(1, 2, 1, 1))
    assert not list(bare.parameters())


def test_which_are_plain() -> None:
    assert [BareConv(conv).plain for conv in CASES] == [True, True, False, True]
    # One zero more on one side than on the other.
    assert not BareConv(nn.Conv2d(3, 4, 4, padding="same")).plain


class Activated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Reversed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


def test_a_subclass_that_does_more_than_pad_is_not_folded() -> None:
    assert foldable(nn.Conv2d(3, 4, 3))
    assert not foldable(Activated(3, 4, 3)) and not foldable(Reversed(3, 4, 3))


def test_timms_convolutions() -> None:
    layers = pytest.importorskip("timm.layers")
    assert foldable(layers.Conv2dSame(3, 6, 3, stride=2))
    assert foldable(layers.Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False))
    assert not foldable(layers.StdConv2d(3, 6, 3)) and not foldable(layers.ScaledStdConv2d(3, 6, 3))
