"""A store in which the ranks of one start meet, and nobody else's traces are left.

torchrun may keep its store when it starts the ranks again, and torch 2.15 no longer separates one
start from the next in it: ranks then connect to addresses of the dead. Rank 0 opens a room with a
new name and tells it to those who called now; a call or an answer of an earlier start is of nobody.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_POLL_SECONDS = 0.02


def meet(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store for this start of the ranks; RuntimeError where some do not come in time."""
    store: dist.Store
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    until = time.monotonic() + timeout.total_seconds()
    name = uuid.uuid4().hex
    if rank == 0:
        room, told = name, ""
        while store.add(f"came to {room}", 0) < world_size - 1:
            calls = [_read(store, f"call of {other}") for other in range(1, world_size)]
            answer = " ".join([room, *calls])
            if answer != told:
                store.set("answer", answer)
                told = answer
            _wait(until)
    else:
        store.set(f"call of {rank}", name)
        while name not in (heard := _read(store, "answer").split()):
            _wait(until)
        room = heard[0]
        store.add(f"came to {room}", 1)
    return dist.PrefixStore(f"room {room}", store)


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(until: float) -> None:
    if time.monotonic() > until:
        raise RuntimeError("timed out waiting for the other ranks to start")
    time.sleep(_POLL_SECONDS)
