"""All ranks must decode to the same pixels: a node without a library is named, not trained on."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch
import torch.distributed as dist

from adafilter_dist.data.loading.backend import SAME_PIXELS
from adafilter_dist.distributed import World
from adafilter_dist.errors import UserError


def require_same_pixels(kind: str, world: World) -> None:
    """UserError on all ranks where some decode to other pixels than others; collective."""
    if world.world_size == 1:
        return
    decoder = kind
    if kind == "nvjpeg":
        decoder = f"nvjpeg of {torch.cuda.get_device_name(world.device)}"
    mine = (decoder, f"rank {world.rank} on {socket.gethostname()}")
    everyone: list[tuple[str, str]] = [mine] * world.world_size
    dist.all_gather_object(everyone, mine)
    require_equal(everyone)


def require_equal(decoders: Sequence[tuple[str, str]]) -> None:
    """UserError where pixels differ between two of (what decodes, where)."""
    one_of_each: dict[str, tuple[str, str]] = {}
    for decoder, where in decoders:
        pixels = "exact" if decoder in SAME_PIXELS else decoder
        one_of_each.setdefault(pixels, (decoder, where))
    if len(one_of_each) == 1:
        return
    first, other, *_ = sorted(one_of_each.values(), key=lambda each: each[0] not in SAME_PIXELS)
    advice = "`adafilter doctor` there says what is missing, or set data.loader=torchvision"
    if any(decoder.startswith("nvjpeg") for decoder in one_of_each):
        advice = "ask for one model of GPU (launch.gpu_type), or set data.loader=numba"
    raise UserError(
        f"data.loader: {first[1]} decodes by {first[0]}, {other[1]} by {other[0]}, so that their "
        f"pixels would differ; {advice}"
    )
