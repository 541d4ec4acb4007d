"""Gathers what hosts, GPUs and shared memory the ranks have, and warns of what is wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from adafilter_dist.distributed import World
from adafilter_dist.system.disk import shared_memory, shortage


@dataclass(frozen=True)
class NodeInfo:
    """One rank's view: its host, its GPU's model, and (total, free) bytes of /dev/shm."""

    rank: int
    host: str
    gpu: str | None = None
    shared: tuple[int, int] | None = None


def describe_rank(world: World) -> NodeInfo:
    """This rank's host, GPU and shared memory."""
    cuda = world.device.type == "cuda"
    gpu = torch.cuda.get_device_name(world.device) if cuda else None
    return NodeInfo(world.rank, socket.gethostname(), gpu, shared_memory())


def gather(world: World) -> list[NodeInfo]:
    """The same of all ranks, in their order; collective."""
    mine = describe_rank(world)
    if world.world_size == 1:
        return [mine]
    everyone: list[NodeInfo | None] = [None] * world.world_size
    dist.all_gather_object(everyone, mine)
    return [one for one in everyone if one is not None]


def first_rank_of_node(nodes: Iterable[NodeInfo]) -> dict[int, NodeInfo]:
    """Rank -> the first rank on the same host."""
    firsts: dict[str, NodeInfo] = {}
    return {one.rank: firsts.setdefault(one.host, one) for one in nodes}


def warnings_about(nodes: Sequence[NodeInfo]) -> list[str]:
    """One line for each thing that costs speed or may end the run, with what to do."""
    return [line for line in (_mixed(nodes), *_small(nodes)) if line]


def _mixed(nodes: Sequence[NodeInfo]) -> str | None:
    hosts: dict[str, dict[str, int]] = {}
    for one in nodes:
        if one.gpu is not None:
            on_host = hosts.setdefault(one.gpu, {})
            on_host[one.host] = on_host.get(one.host, 0) + 1
    if len(hosts) < 2:
        return None
    kinds = [f"{sum(by.values())} x {gpu} on {_short(by)}" for gpu, by in sorted(hosts.items())]
    return (
        f"warning: mixed GPUs: {'; '.join(kinds)}: each step waits for the slowest, and a restart "
        "on others is not bit-exact; ask for one model with launch.gpu_type= or "
        "launch.constraint=, or leave nodes out with launch.exclude="
    )


def _small(nodes: Sequence[NodeInfo]) -> list[str]:
    """GPUs of one node talk through /dev/shm where they have no better way."""
    ranks: dict[str, list[NodeInfo]] = {}
    for one in nodes:
        if one.gpu is not None:
            ranks.setdefault(one.host, []).append(one)
    hosts: dict[str, list[str]] = {}
    for host, together in ranks.items():
        short = [shortage(*one.shared) for one in together if one.shared is not None]
        reason = next((reason for reason in short if reason), None)
        if len(together) > 1 and reason is not None:
            hosts.setdefault(reason, []).append(host)
    return [f"warning: /dev/shm on {_short(on)}: {reason}" for reason, on in hosts.items()]


def _short(hosts: Iterable[str]) -> str:
    names = list(hosts)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
