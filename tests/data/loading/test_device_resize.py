"""What torch computes for many boxes at once are the pixels of the compiled resize, to the bit."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

from adafilter_dist.data.loading.device_resize import resize_boxes
from tests.data.loading.test_area_resize import boxes, scaled

Item = tuple[NDArray[np.uint8], tuple[int, int, int, int], bool]


def test_pixels_of_the_compiled_resize() -> None:
    by_size: dict[int, list[Item]] = defaultdict(list)
    for number, (source, box, size) in enumerate(boxes(200)):
        by_size[size].append((source, box, number % 3 == 0))
    for size, items in by_size.items():
        pictures = [torch.from_numpy(source).permute(2, 0, 1) for source, _, _ in items]
        orders = np.array([[*box, mirrored] for _, box, mirrored in items])
        target = torch.empty((len(items), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        resize_boxes(pictures, orders, target)
        for pixels, (source, box, mirrored) in zip(target, items, strict=True):
            wanted = scaled(source, box, size, mirrored)
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), wanted), (box, size, mirrored)
