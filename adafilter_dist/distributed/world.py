"""Who takes part: rank, world_size, device, and the process group between them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group

from adafilter_dist.distributed.deepspeed_import import require_deepspeed
from adafilter_dist.distributed.exit_after import ended_unless_done, within
from adafilter_dist.distributed.lost_peer import sign_of_loss
from adafilter_dist.distributed.meeting import meet
from adafilter_dist.distributed.meeting_file import Meeting, meet_in_file, wrong_network
from adafilter_dist.distributed.progress import Progress
from adafilter_dist.distributed.same_device_type import require_one_kind
from adafilter_dist.errors import RankError, UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.shares import require_shares
from adafilter_dist.slurm.cpus import cpus_of_rank
from adafilter_dist.slurm.environment import SlurmEnvironment
from adafilter_dist.system.freed_memory import keep_freed_memory

_LEAVE_SECONDS = 20.0
"""For leaving the process group after an error."""


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    threads: int
    store: dist.Store = field(default_factory=dist.HashStore, compare=False, repr=False)
    """A key-value store in which ranks leave messages where a collective would time out."""
    progress: Progress = field(default_factory=Progress, compare=False, repr=False)
    """Where this rank's main thread is, for those who watch whether it hangs."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, which prints and writes files for all ranks."""
        return self.rank == 0


def _place() -> tuple[int, int, int, int]:
    """(rank, world_size, local_rank, local_world_size) as torchrun sets them; one process else.

    With ADAFILTER_MEETING, the file by which the ranks meet, nobody has to know an address.
    """
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not any(key in os.environ for key in keys[:2]):
        return 0, 1, 0, 1
    master = () if _meeting() is not None else ("MASTER_ADDR", "MASTER_PORT")
    missing = [key for key in (*keys[:3], *master) if key not in os.environ]
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
    count = torch.cuda.device_count()
    if count == 1 and SlurmEnvironment().gpus_are_of_task:
        return torch.device("cuda", 0)  # SLURM shows each task its own GPU, and no other
    if local_rank >= count:
        raise RankError(
            f"local rank {local_rank} has no GPU of its own: {socket.gethostname()} has {count}; "
            "start at most that many processes a node"
        )
    return torch.device("cuda", local_rank)


def _meeting() -> Path | None:
    """The file by which the ranks meet, unless a launcher such as torchrun gave an address."""
    file = os.environ.get("ADAFILTER_MEETING")
    return Path(file) if file and "MASTER_ADDR" not in os.environ else None


def _connect_seconds() -> float:
    text = os.environ.get("ADAFILTER_CONNECT_TIMEOUT", "120")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"ADAFILTER_CONNECT_TIMEOUT={text}: a number of seconds") from None


@contextmanager
def join_world(recipe: Recipe) -> Iterator[World]:
    """Set up device, threads and process group; leave the group on the way out.

    Raises UserError for a world size that the recipe's micro-batches cannot feed, and where the
    engine is not installed.
    """
    rank, world_size, local_rank, local_world_size = _place()
    require_deepspeed(recipe)
    require_shares(recipe, world_size, f"world size {world_size}")
    device = _device(recipe.engine.device, local_rank)
    threads = recipe.engine.threads or cpus_of_rank()
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=seconds(recipe.engine.timeout))
    meeting = _meet(rank, world_size, timeout)
    _connect(meeting.store, rank, world_size, device, timeout)
    store = dist.PrefixStore("word", meeting.store)
    try:
        yield World(rank, world_size, local_rank, local_world_size, device, threads, store)
    except BaseException:
        _leave_after_error(device)
        raise
    dist.destroy_process_group()
    meeting.leave()


def _leave_after_error(device: torch.device) -> None:
    """Leave the process group without the others, which may wait in a collective for this rank.

    NCCL's destroy waits for what is queued on the device, so up to engine.timeout for a collective
    that nobody else will enter; its communicators are aborted instead.
    """
    leave = _abort_process_group if device.type == "cuda" else dist.destroy_process_group
    within(_LEAVE_SECONDS, leave)


def _meet(rank: int, world_size: int, timeout: timedelta) -> Meeting:
    """A store that all ranks have reached; RankError where some do not come."""
    file = _meeting()
    if "WORLD_SIZE" not in os.environ:
        return Meeting(0, 1, dist.HashStore())
    if file is not None:
        return meet_in_file(
            file,
            rank,
            world_size,
            within=_connect_seconds(),
            timeout=timeout,
            interface=os.environ.get("ADAFILTER_INTERFACE") or None,
        )
    try:
        return Meeting(0, 1, meet(rank, world_size, timeout))
    except RuntimeError as error:
        if sign_of_loss(error) is None:
            raise
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        came = re.search(r"(\d+)/(\d+) clients joined", str(error))
        reason = f"{came[1]} of {came[2]} came" if came else str(error).splitlines()[0]
        raise RankError(
            f"rank {rank} on {socket.gethostname()}: the ranks did not meet at {address} within "
            f"{timeout.total_seconds():.0f} s ({reason}); the other ranks' output says why, if "
            "they were started at all: check that WORLD_SIZE processes are, that MASTER_ADDR and "
            "MASTER_PORT are the same for all, and that no firewall is between"
        ) from None


def _connect(
    store: dist.Store, rank: int, world_size: int, device: torch.device, timeout: timedelta
) -> None:
    """Make the process group; where that does not work, say so within a bounded time."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    # gloo ends by itself after the group's time-out; NCCL may try for ever.
    within = _connect_seconds() if _meeting() is not None else timeout.total_seconds() + 60
    where = f"rank {rank} on {socket.gethostname()}: the ranks have met, but {backend}"
    advice = f"another rank ended (its output says why), {wrong_network()}"
    late = f"{where} could not connect them all within {within:.0f} s: {advice}"
    require_one_kind(store, rank, world_size, device.type, within)
    try:
        with ended_unless_done(within, late):
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=timeout,
                device_id=device if device.type == "cuda" else None,
            )
    except RuntimeError as error:
        if sign_of_loss(error) is None:
            raise
        reason = str(error).splitlines()[0]
        raise RankError(f"{where} could not connect them ({reason}): {advice}") from None


def set_arithmetic(recipe: Recipe) -> None:
    """Matmul precision and, where asked for, deterministic kernels only."""
    torch.set_float32_matmul_precision(recipe.train.matmul_precision)
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        # cuBLAS reads this when its handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
        # Filling every torch.empty would only show reads of what nobody wrote, at the cost of a
        # pass over memory each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
