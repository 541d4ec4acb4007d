"""Rank 0 decides for all (`from_rank0`), and errors that mean that another rank is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from adafilter_dist.errors import LostPeerError, RankError, UserError, resume_line

if TYPE_CHECKING:
    from adafilter_dist.distributed.world import World

__all__ = ["RankError", "from_rank0", "lost_peer", "sign_of_loss"]

T = TypeVar("T")

# What gloo, NCCL and the store say when the other end is gone or silent for too long.
_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket Timeout",
    "Timed out waiting",
    "Timed out after",
    "timed out",
    "remote process exited",
    "NCCL communicator was aborted",
    "ncclRemoteError",
)


def from_rank0(world: World, choose: Callable[[], T]) -> T:
    """What ``choose`` gives on rank 0, on every rank; a UserError of rank 0 is raised on all."""
    box: list[Any] = [None]
    if world.is_rank0:
        try:
            box = [choose()]
        except UserError as error:
            box = [error]
    dist.broadcast_object_list(box, src=0, device=world.device)
    if isinstance(box[0], UserError):
        raise box[0]
    choice: T = box[0]
    return choice


def sign_of_loss(error: BaseException) -> str | None:
    """The words by which an error says that another rank is gone or cannot be reached, if any."""
    if not isinstance(error, RuntimeError):
        return None
    return next((sign for sign in _SIGNS if sign in str(error)), None)


def lost_peer(error: BaseException, where: str, timeout: str, run: Path) -> LostPeerError | None:
    """The error to show where ``error`` says that another rank is gone, else None."""
    sign = sign_of_loss(error)
    if sign is None:
        return None
    return LostPeerError(
        f"{where} lost another rank ({sign}): it ended, or gave no answer for "
        f"engine.timeout={timeout}; its own output says why. Go on with: {resume_line(run)}"
    )
