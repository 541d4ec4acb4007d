"""Either every rank has a GPU or none: a node that hides its own is named, not waited for."""

from __future__ import annotations

import socket
import time

import torch.distributed as dist

from adafilter_dist.errors import RankError

_KINDS = ("cuda", "cpu")


def require_one_kind(
    store: dist.Store, rank: int, world_size: int, kind: str, within: float
) -> None:
    """RankError on all ranks where some have a GPU (kind cuda) and others have none (cpu).

    Waits for the others at most ``within`` seconds, and then leaves it to the process group to say
    what is wrong.
    """
    if world_size == 1:
        return
    store = dist.PrefixStore("kinds", store)
    host = socket.gethostname()
    until = time.monotonic() + within
    try:
        if store.add(kind, 1) == 1:
            store.set(f"one {kind}", f"rank {rank} on {host}")
        while sum(store.add(one, 0) for one in _KINDS) < world_size:
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        counts = {one: store.add(one, 0) for one in _KINDS}
        if not all(counts.values()):
            return
        # Set by the same rank that counted first, an instant later.
        with_gpu, without = (store.get(f"one {one}").decode() for one in _KINDS)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"rank {rank} on {host}: another rank ended at the start ({reason}); its output says "
            "why"
        ) from None
    if rank == 0:
        time.sleep(1.0)  # the store may be this process's, and the others read it still
    raise RankError(
        f"rank {rank} on {host}: only {counts['cuda']} of {world_size} ranks have a GPU "
        f"({with_gpu} has one, {without} sees none): ask for GPUs for every task, look at "
        "`nvidia-smi` there, or set engine.device=cpu"
    )
