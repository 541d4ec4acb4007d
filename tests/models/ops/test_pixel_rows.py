"""Which layouts are rows of pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.ops.pixel_rows import empty_rows, pixel_rows, pixel_stride


def last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 3, 1, 1), (2, 3, 1, 1), (2, 1, 4, 5), (1, 3, 4, 1)]
)
def test_channels_last_and_halves_of_a_stacked_tensor_are(shape: tuple[int, int, int, int]) -> None:
    images, channels, height, width = shape
    assert pixel_stride(last(*shape)) == channels
    for half in last(images, 2 * channels, height, width).split(channels, 1):
        rows, stride = pixel_rows(half)
        assert rows is half
        # As a kernel walks: from the first element, row by row.
        walked = half.as_strided((images * height * width, channels), (stride, 1))
        assert torch.equal(walked, half.permute(0, 2, 3, 1).reshape(-1, channels))


@pytest.mark.parametrize(
    "y",
    [
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 1, 1).expand(2, 3, 4, 5),
        torch.randn(1, 3, 1, 1).expand(2, 3, 4, 5),
        last(2, 3, 4, 5)[:, :, :, 1:],
        last(2, 3, 4, 5).transpose(2, 3),
        last(4, 3, 4, 5)[::2],
        last(2, 6, 4, 5)[:, ::2],
    ],
    ids=["rows", "expanded", "one pixel", "cropped", "transposed", "images", "channels"],
)
def test_others_are_copied(y: Tensor) -> None:
    assert pixel_stride(y) is None
    rows, stride = pixel_rows(y)
    assert stride == y.shape[1] and rows.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(rows, y)


def test_empty_rows_are_channels_last() -> None:
    made = empty_rows(torch.empty(2, 3, 4, 5, dtype=torch.bfloat16), 7)
    assert made.shape == (2, 7, 4, 5) and made.dtype == torch.bfloat16
    assert pixel_stride(made) == 7
