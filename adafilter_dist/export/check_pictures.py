"""Real pictures on which an exported program is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.prepare.read_pictures import quiet_pictures
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.preprocess import Preprocess, pixels_of
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.recipe import Recipe
from adafilter_dist.system.counted import counted


@dataclass(frozen=True, eq=False)
class CheckPictures:
    """uint8 RGB (N, H, W, 3), as evaluation sees them, and where they are from."""

    pixels: Tensor
    on: str


def from_files(paths: Sequence[Path], preprocess: Preprocess, count: int) -> CheckPictures:
    """Of files, evenly spread; UserError for one that cannot be used."""
    taken = [paths[at * len(paths) // count] for at in range(min(count, len(paths)))]
    if len(paths) <= count:
        taken = list(paths)
    pictures = []
    with quiet_pictures():
        for path in taken:
            try:
                pictures.append(pixels_of(path, preprocess))
            except BadPicture as error:
                raise UserError(f"--pictures: {path} cannot be used: {error}") from None
    return CheckPictures(torch.from_numpy(np.stack(pictures)), counted(len(paths), "file"))


def from_data(
    prepared: Prepared, recipe: Recipe, preprocess: Preprocess, count: int
) -> CheckPictures:
    """Of the test pictures of prepared data, evenly spread."""
    loader = EvalLoader(
        PreparedSubset.of(prepared, count),
        "test",
        recipe,
        preprocess,
        rank=0,
        world_size=1,
        batch_size=64,
    )
    images = torch.cat([batch.images for batch in loader])
    return CheckPictures(images.permute(0, 2, 3, 1).contiguous(), "the test set")
