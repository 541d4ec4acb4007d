"""Gives the ranks of one start a key-value store that holds nothing from earlier starts.

torchrun may keep its store when it restarts the ranks, and torch 2.15 no longer separates one start
from the next in it: ranks then connect to addresses of dead processes. So every rank calls with a
new random name. Rank 0's name becomes a prefix for the store's keys (the room), and rank 0 answers
with it and with the names of the ranks that called. A rank that finds its own name in the answer
enters the room; calls and answers of an earlier start hold other names and are ignored.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_POLL_SECONDS = 0.02


def meet(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store for this start of the ranks; RuntimeError if some do not come in time."""
    store: dist.Store
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    until = time.monotonic() + timeout.total_seconds()
    name = uuid.uuid4().hex
    if rank == 0:
        room, last_answer = name, ""
        while store.add(f"came to {room}", 0) < world_size - 1:
            calls = [_read(store, f"call of {other}") for other in range(1, world_size)]
            answer = " ".join([room, *calls])
            if answer != last_answer:
                store.set("answer", answer)
                last_answer = answer
            _wait(until)
    else:
        store.set(f"call of {rank}", name)
        while name not in (answered := _read(store, "answer").split()):
            _wait(until)
        room = answered[0]
        store.add(f"came to {room}", 1)
    return dist.PrefixStore(f"room {room}", store)


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(until: float) -> None:
    if time.monotonic() > until:
        raise RuntimeError("timed out waiting for the other ranks to start")
    time.sleep(_POLL_SECONDS)
