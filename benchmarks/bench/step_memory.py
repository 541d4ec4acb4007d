"""Memory of a training step: at rest, at its peak, and what is kept for the backward.

On a GPU torch's allocator is asked. On a CPU every variant runs in a process of its own, whose
peak of resident memory during the step is compared with that before it; the allocator is told to
give freed blocks back at once.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.reporting import Column, Table, say
from bench.settings import Settings
from bench.training import BATCHES, TrainingStep
from bench.variants import PLAIN, TRAINED, Networks

COLUMNS = [
    Column("batch", 0),
    Column("variant"),
    Column("at rest MB", 1),
    Column("step MB", 1),
    Column("peak MB", 1),
    Column("saved MB", 1),
    Column("peak to plain", 3),
    Column("step to plain", 3),
    Column("saved to plain", 3),
]
LEGEND = (
    "at rest: weights, buffers, momentum (counted on the tensors). step: the peak during a "
    "training step above what is there before it, gradients included. peak: the sum. saved: "
    "distinct tensors kept from forward for backward, weights and buffers aside. MB: 10^6 bytes."
)
SCRIPT = Path(__file__).parents[1] / "speed.py"
# Blocks from 64 kB on come from and return to the system, so that resident memory follows.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    rest: int
    step: int
    saved: int
    missing: list[str]

    @property
    def peak(self) -> int:
        """At rest and on top."""
        return self.rest + self.step


def memory(settings: Settings) -> tuple[Table, list[str]]:
    """Measure all variants at each batch, each in a fresh process; the table, and lines below."""
    table = Table(f"Memory of a training step, {settings.model}, {settings.size} px", COLUMNS)
    notes = [LEGEND]
    for batch in settings.batches(BATCHES):
        memories: dict[str, Memory] = {}
        for name in TRAINED:
            say(f"batch {batch}: {name}, in a process of its own")
            memories[name] = in_a_process(settings, name, batch)
        plain = memories[PLAIN]
        for name, own in memories.items():
            bytes_ = (own.rest, own.step, own.peak, own.saved)
            ratios = (own.peak / plain.peak, own.step / plain.step, own.saved / plain.saved)
            table.add(batch, name, *(n / 1e6 for n in bytes_), *ratios)
            notes += [line for line in own.missing if line not in notes]
    return table, notes


def in_a_process(settings: Settings, name: str, batch: int) -> Memory:
    """Measure one variant in a fresh process; RuntimeError with its words if it fails."""
    options = {
        "--model": settings.model,
        "--batch": str(batch),
        "--size": str(settings.size),
        "--precision": settings.precision,
        "--threads": str(settings.threads),
        "--device": settings.device_name,
        "--only": name,
    }
    words = [word for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "memory", *words],
        env=os.environ | GIVE_BACK,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with code {done.returncode}:\n{done.stderr}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def tell_one(settings: Settings) -> None:
    """What the process of one variant prints: its bytes, as a line of JSON."""
    if settings.only not in TRAINED:
        raise RuntimeError(f"--only {settings.only}: one of {', '.join(TRAINED)}")
    settings.pin()
    networks = Networks(settings)
    step = TrainingStep(
        networks.make(settings.only), networks, settings.batches(BATCHES)[0], compiled=False
    )
    print(json.dumps(asdict(measured(step, networks.missing))))


def measured(step: TrainingStep, missing: list[str]) -> Memory:
    """Of one step of a network that has taken one before."""
    step()
    with saved_for_backward(step.net) as sizes:
        step.forward()
    step.optimizer.zero_grad(set_to_none=True)
    device = step.settings.device
    gc.collect()  # what the step would free is not there before it
    before = reset_peak(device)
    step()
    return Memory(at_rest(step), peak(device) - before, sum(sizes.values()), missing)


def at_rest(step: TrainingStep) -> int:
    """Bytes of weights, buffers and the optimizer's state."""
    state = [t for kept in step.optimizer.state.values() for t in kept.values()]
    tensors = [*step.net.parameters(), *step.net.buffers(), *state]
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


@contextmanager
def saved_for_backward(net: nn.Module) -> Iterator[dict[int, int]]:
    """Address -> bytes of the distinct storages that the forward inside saves."""
    own = {t.untyped_storage().data_ptr() for t in net.parameters()}
    own |= {t.untyped_storage().data_ptr() for t in net.buffers()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # an address stays its own while the tensor lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def reset_peak(device: torch.device) -> int:
    """Begin a new peak; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the high-water mark falls to what is resident now
        return _status("VmRSS")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(device: torch.device) -> int:
    """The most bytes in use since `reset_peak`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    memories = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    if memories is None:
        raise RuntimeError(f"/proc/self/status has no {key}")
    return int(memories[1]) * 1024
