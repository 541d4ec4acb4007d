"""Activations as a matrix: one row a pixel, one column a channel, as kernels walk through them."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_stride(y: Tensor) -> int | None:
    """Elements from a pixel of y (N, C, H, W) to the next, over all images; None if none fits.

    C for channels-last, 2C for the channel halves of a stacked (N, 2C, H, W) tensor. None where
    channels do not lie side by side or pixels overlap.
    """
    return row_stride(y.shape, y.stride())


def row_stride(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """`pixel_stride` of a tensor with this shape and these strides."""
    images, channels, height, width = shape
    by_image, by_channel, by_row, by_pixel = strides
    if width > 1:
        stride = by_pixel
    elif height > 1:
        stride = by_row
    elif images > 1:
        stride = by_image
    else:
        stride = channels
    fits = (
        stride >= channels
        and (channels == 1 or by_channel == 1)
        and (height == 1 or by_row == width * stride)
        and (images == 1 or by_image == height * width * stride)
    )
    return stride if fits else None


def pixel_rows(y: Tensor) -> tuple[Tensor, int]:
    """y (N, C, H, W) and its pixel stride; a channels-last copy where its own layout has none."""
    stride = pixel_stride(y)
    if stride is not None:
        return y, stride
    y = torch.empty_like(y, memory_format=torch.channels_last).copy_(y)
    return y, y.shape[1]


def empty_rows(like: Tensor, channels: int) -> Tensor:
    """Uninitialised (N, `channels`, H, W), channels-last, dtype and device of `like`."""
    images, _, height, width = like.shape
    return torch.empty(
        (images, channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
