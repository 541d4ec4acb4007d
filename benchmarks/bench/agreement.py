"""What it costs that all ranks agree to stop: three more values in each step's all-reduce."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist

from adafilter_dist.training.delayed_metrics import DelayedMetrics
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session
from bench.saving import Times

FLAGS = 3  # wait, stop and save: what agreeing adds to the step's vector


def reading_of_flags(session: Session, repeats: int = 1000) -> list[float]:
    """Seconds of putting three values into a step's vector and reading six a few steps later."""
    dtype, device = session.engine.dtype, session.world.device
    figures, delayed, times = torch.zeros(6, dtype=dtype, device=device), DelayedMetrics(DELAY), []
    for step in range(repeats):
        began = time.perf_counter()
        figures[3:] = figures.new_tensor([0.0, False, False])
        delayed.push(step, figures)
        list(delayed.ready(step))
        times.append(time.perf_counter() - began)
    return times


def reductions(values: int, pairs: int, folder: Path) -> Times:
    """Seconds of all-reduces of ``values`` statistics with and without the flags, on two ranks."""
    answer = folder / "reductions.json"
    cuda = torch.cuda.device_count() >= 2
    context = torch.multiprocessing.get_context("spawn")
    arguments = (values, pairs, cuda, folder / "store", answer)
    ranks = [context.Process(target=reduce_pairs, args=(rank, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
        if rank.exitcode != 0:
            rank.kill()
            raise SystemExit("a rank of the all-reduces failed")
    times: Times = json.loads(answer.read_text())
    return times


def reduce_pairs(rank: int, values: int, pairs: int, cuda: bool, store: Path, answer: Path) -> None:
    """One rank: both lengths in turn, the other one first in every second pair."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    lengths = {"without": values + 3, "with": values + 3 + FLAGS}
    vectors = {name: torch.zeros(length, device=device) for name, length in lengths.items()}
    times: Times = defaultdict(list)
    for number in range(pairs + 100):
        names = list(vectors)[:: 1 if number % 2 else -1]
        for name in names:
            began = time.perf_counter()
            dist.all_reduce(vectors[name])
            if cuda:
                torch.cuda.synchronize()
            if number >= 100:
                times[name].append(time.perf_counter() - began)
    times["backend"] = [float(cuda)]
    if rank == 0:
        answer.write_text(json.dumps(times))
    dist.destroy_process_group()
