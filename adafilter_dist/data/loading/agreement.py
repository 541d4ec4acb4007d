"""All ranks must decode to the same pixels: a node without a library is named, not trained on."""

from __future__ import annotations

import socket

import torch.distributed as dist

from adafilter_dist.data.loading.backend import SAME_PIXELS
from adafilter_dist.distributed import World
from adafilter_dist.errors import UserError


def require_same_pixels(kind: str, world: World) -> None:
    """UserError on all ranks where some decode to other pixels than others; collective."""
    if world.world_size == 1:
        return
    mine = (kind, f"rank {world.rank} on {socket.gethostname()}")
    everyone: list[tuple[str, str]] = [mine] * world.world_size
    dist.all_gather_object(everyone, mine)
    exact = [one for one in everyone if one[0] in SAME_PIXELS]
    others = [one for one in everyone if one[0] not in SAME_PIXELS]
    if exact and others:
        raise UserError(
            f"data.loader: {exact[0][1]} decodes by {exact[0][0]}, {others[0][1]} by "
            f"{others[0][0]}, so that their pixels would differ; `adafilter doctor` there says "
            "what is missing, or set data.loader=torchvision"
        )
