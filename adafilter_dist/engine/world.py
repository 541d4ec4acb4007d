"""Who takes part: rank, world_size, device, and the process group between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from adafilter_dist.engine.meeting import meet
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.schema import seconds


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    threads: int

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0


def _place() -> tuple[int, int, int, int]:
    """(rank, world_size, local_rank, local_world_size) as torchrun sets them; one process else."""
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not any(key in os.environ for key in keys[:2]):
        return 0, 1, 0, 1
    missing = [key for key in (*keys[:3], "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise UserError(
            f"the launcher set some of torchrun's variables but not {', '.join(missing)}; "
            "start with torchrun, or unset RANK and WORLD_SIZE for one process"
        )
    rank, size, local = (int(os.environ[key]) for key in keys[:3])
    return rank, size, local, int(os.environ.get(keys[3], "1"))


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("engine.device=cuda: torch sees no CUDA device here; use engine.device=cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU of its own: this node has "
            f"{torch.cuda.device_count()}; start at most that many processes a node"
        )
    return torch.device("cuda", local_rank)


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def join_world(recipe: Recipe) -> Iterator[World]:
    """Set up device, threads and process group; leave the group on the way out.

    Raises UserError for a world size that the recipe's micro-batches cannot feed.
    """
    rank, world_size, local_rank, local_world_size = _place()
    if world_size > recipe.train.micro_batches:
        train = recipe.train
        raise UserError(
            f"world size {world_size}: global_batch={train.global_batch} holds only "
            f"{train.micro_batches} micro-batches of {train.micro_batch}; start at most "
            f"{train.micro_batches} processes or lower train.micro_batch (it changes the numbers)"
        )
    device = _device(recipe.engine.device, local_rank)
    threads = recipe.engine.threads or max(1, cores() // local_world_size)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    alone = "WORLD_SIZE" not in os.environ
    timeout = timedelta(seconds=seconds(recipe.engine.timeout))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.HashStore() if alone else meet(rank, world_size, timeout),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield World(rank, world_size, local_rank, local_world_size, device, threads)
    finally:
        dist.destroy_process_group()


def set_arithmetic(recipe: Recipe) -> None:
    """Matmul precision and, where asked for, deterministic kernels only."""
    torch.set_float32_matmul_precision(recipe.train.matmul_precision)
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        # cuBLAS reads this when its handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
